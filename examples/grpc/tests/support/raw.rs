//! A client for HTTP/2 without gRPC, which records everything that the server sends.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;

use super::within;

/// The response to one request: everything except the date, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(String, Bytes)>,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<Vec<(String, Bytes)>>,
}

impl Recorded {
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        find(&self.headers, name)
    }

    pub(crate) fn trailer(&self, name: &str) -> Option<&[u8]> {
        find(self.trailers.as_ref()?, name)
    }
}

fn find<'a>(list: &'a [(String, Bytes)], name: &str) -> Option<&'a [u8]> {
    list.iter().find(|(known, _)| known == name).map(|(_, value)| &value[..])
}

fn list(headers: &HeaderMap) -> Vec<(String, Bytes)> {
    let list = headers.iter().filter(|(name, _)| *name != header::DATE);
    list.map(|(name, value)| (name.to_string(), Bytes::copy_from_slice(value.as_bytes()))).collect()
}

/// A message in the wire format: a byte for "not compressed", its length, and its bytes.
pub(crate) fn message(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// One connection.
pub(crate) struct RawClient {
    addr: SocketAddr,
    send: http2::SendRequest<Full<Bytes>>,
}

impl RawClient {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = within("connect", TcpStream::connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (send, connection) = within("handshake", handshake).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { addr, send }
    }

    /// Calls `/agent.v1.Agent/{method}`.
    pub(crate) async fn call(&mut self, method: &str, metadata: &[(&str, &str)], body: Bytes) -> Recorded {
        let mut request = Request::post(format!("http://{}/agent.v1.Agent/{method}", self.addr))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::from(body)).unwrap()).await
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Recorded {
        within("ready", self.send.ready()).await.unwrap();
        let response = within("a head", self.send.send_request(request)).await.unwrap();
        let (status, headers) = (response.status(), list(response.headers()));
        let body = within("a body", response.into_body().collect()).await.unwrap();
        let trailers = body.trailers().map(list);
        Recorded { status, headers, body: body.to_bytes(), trailers }
    }
}
