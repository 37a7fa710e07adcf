//! The Lua scripts and their execution.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value, aio::ConnectionLike};

/// A script, preceded by `common.lua`.
macro_rules! script {
    ($file:literal) => {{
        const CODE: &str = concat!(include_str!("lua/common.lua"), include_str!($file));
        RedisScript { code: CODE, sha1: Script::new(CODE).get_hash().to_owned() }
    }};
}

pub(super) static ENTER: LazyLock<RedisScript> = LazyLock::new(|| script!("lua/enter.lua"));
pub(super) static HEARTBEAT: LazyLock<RedisScript> = LazyLock::new(|| script!("lua/heartbeat.lua"));
pub(super) static APPLY: LazyLock<RedisScript> = LazyLock::new(|| script!("lua/apply.lua"));
pub(super) static RECOVER: LazyLock<RedisScript> = LazyLock::new(|| script!("lua/recover.lua"));
pub(super) static RELEASE_LEASE: LazyLock<RedisScript> = LazyLock::new(|| script!("lua/release_lease.lua"));

#[derive(Debug)]
pub(super) struct RedisScript {
    code: &'static str,
    sha1: String,
}

/// The keys and arguments of a script, besides the common ones.
#[derive(Debug, Default)]
pub(super) struct ScriptArgs {
    pub(super) keys: Vec<String>,
    pub(super) args: Vec<String>,
}

impl RedisScript {
    /// Runs the script by its hash, or by its text if the server does not know it yet. Unlike `SCRIPT LOAD`, `EVAL` is
    /// routed through a cluster like the call itself.
    pub(super) async fn run<C: ConnectionLike + ?Sized>(
        &self,
        connection: &mut C,
        call: &ScriptArgs,
    ) -> RedisResult<Value> {
        let by_hash = command("EVALSHA", &self.sha1, call);
        match connection.req_packed_command(&by_hash).await.and_then(Value::extract_error) {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let by_text = command("EVAL", self.code, call);
                connection.req_packed_command(&by_text).await.and_then(Value::extract_error)
            }
            answer => answer,
        }
    }
}

fn command(name: &str, script: &str, call: &ScriptArgs) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(script).arg(call.keys.len()).arg(&call.keys).arg(&call.args);
    command
}
