//! The definition of the service, in place of a `.proto` file. Its messages are in `src/lib.rs`.

use tonic_build::manual::{Builder, Method, MethodBuilder, Service};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let agent = Service::builder()
        .name("Agent")
        .package("agent.v1")
        .comment("An agent that chats in sessions. Their ids are in the metadata `x-session-id`.")
        .method(method("open", "Open").input_type("crate::OpenRequest").output_type("crate::Empty").build())
        .method(method("chat", "Chat").input_type("crate::ChatRequest").output_type("crate::ChatReply").build())
        .method(method("compact", "Compact").input_type("crate::Empty").output_type("crate::Empty").build())
        .method(method("close", "Close").input_type("crate::Empty").output_type("crate::Empty").build())
        .method(
            method("watch", "Watch").input_type("crate::Empty").output_type("crate::Tick").server_streaming().build(),
        )
        .build();
    Builder::new().compile(&[agent]);
}

fn method(name: &str, route: &str) -> MethodBuilder {
    Method::builder().name(name).route_name(route).codec_path("tonic_prost::ProstCodec")
}
