//! The load generator: clients that send the next request once the last one is answered, and check every answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    Protocol,
    measure::{Fallible, Spread},
    process::{BODY, ID, Server, processor_time},
};

/// For HTTP/1.
const CONNECTIONS: usize = 32;

/// For HTTP/2.
const WIDE_CONNECTIONS: usize = 2;
const STREAMS: usize = 32;

/// The figures of one server in one turn.
pub(crate) struct Turn {
    elapsed: Duration,
    processor: Duration,
    /// In microseconds.
    waits: Spread,
    requests: usize,
}

impl Turn {
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// The quantile `part` (0 to 1) of the latencies, in microseconds.
    pub(crate) fn wait(&self, part: f64) -> f64 {
        self.waits.at(part)
    }

    /// CPU time of the server, in microseconds per request.
    pub(crate) fn processor(&self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / self.requests as f64
    }
}

/// The clients of one server.
pub(crate) struct Load {
    server: u32,
    /// One client per concurrent request.
    clients: Vec<Client>,
    ids: Arc<Vec<HeaderValue>>,
}

/// One HTTP/1 connection, or one stream of an HTTP/2 connection.
enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Load {
    /// Connects, and starts the known sessions.
    pub(crate) async fn connect(server: &Server, protocol: Protocol, known: usize) -> Fallible<Self> {
        let mut clients = Vec::new();
        let connections = if protocol == Protocol::Http1 { CONNECTIONS } else { WIDE_CONNECTIONS };
        for _ in 0..connections {
            let stream = TcpStream::connect(server.address()).await?;
            stream.set_nodelay(true)?;
            let io = TokioIo::new(stream);
            match protocol {
                Protocol::Http1 => {
                    let (client, connection) = http1::handshake(io).await?;
                    tokio::spawn(connection);
                    clients.push(Client::Http1(client));
                }
                Protocol::Http2 => {
                    let (client, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                    tokio::spawn(connection);
                    clients.extend((0..STREAMS).map(|_| Client::Http2(client.clone())));
                }
            }
        }
        let first = clients.first_mut().ok_or("no connection")?;
        let mut ids = Vec::with_capacity(known);
        for _ in 0..known {
            ids.push(first.ask(Ask::NewSession).await?.ok_or("a new session without an id")?);
        }
        Ok(Self { server: server.id(), clients, ids: Arc::new(ids) })
    }

    /// Sends requests for that long.
    pub(crate) async fn turn(&mut self, length: Duration) -> Fallible<Turn> {
        let processor = processor_time(self.server)?;
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for (number, mut client) in self.clients.drain(..).enumerate() {
            let ids = Arc::clone(&self.ids);
            tasks.spawn(async move {
                let mut waits = Vec::new();
                // Each client starts at a different position in the mix and in the list of sessions.
                let mut step = number * 7;
                while begun.elapsed() < length {
                    let before = Instant::now();
                    client.ask(Ask::number(step, &ids)).await?;
                    waits.push(before.elapsed().as_nanos() as f64 / 1e3);
                    step += 1;
                }
                Fallible::Ok((client, waits))
            });
        }
        let mut waits = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (client, of_client) = done??;
            self.clients.push(client);
            waits.extend(of_client);
        }
        let elapsed = begun.elapsed();
        let processor = processor_time(self.server)? - processor;
        Ok(Turn { elapsed, processor, requests: waits.len(), waits: Spread::of(waits) })
    }
}

/// The kind of a request.
enum Ask<'a> {
    Known(&'a HeaderValue),
    NewSession,
    Nothing,
}

impl<'a> Ask<'a> {
    /// The request at this position of the mix.
    fn number(step: usize, ids: &'a [HeaderValue]) -> Self {
        match step % 20 {
            0 => Self::NewSession,
            5 | 10 | 15 => Self::Nothing,
            _ => Self::Known(&ids[step.wrapping_mul(7919) % ids.len()]),
        }
    }
}

impl Client {
    /// One exchange, to the end of the body. Returns the id of the response.
    async fn ask(&mut self, ask: Ask<'_>) -> Fallible<Option<HeaderValue>> {
        let (method, path) = match ask {
            Ask::Known(_) => ("POST", "/chat"),
            Ask::NewSession => ("POST", "/sessions"),
            Ask::Nothing => ("GET", "/about"),
        };
        let is_wide = matches!(self, Self::Http2(_));
        let mut request = Request::builder().method(method);
        request = if is_wide {
            request.uri(format!("http://localhost{path}"))
        } else {
            request.uri(path).header("host", "localhost")
        };
        request = request.header("user-agent", "bench").header("accept", "application/json");
        if let Ask::Known(id) = ask {
            request = request.header(&ID, id);
        }
        let body = if method == "POST" { "{\"question\":\"?\"}" } else { "" };
        let request = request.body(Full::from(body))?;
        let response = match self {
            Self::Http1(client) => {
                client.ready().await?;
                client.send_request(request).await?
            }
            Self::Http2(client) => {
                client.ready().await?;
                client.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let id = head.headers.get(&ID).cloned();
        let is_right = match ask {
            Ask::Known(known) => id.as_ref() == Some(known),
            Ask::NewSession => id.is_some(),
            Ask::Nothing => id.is_none(),
        };
        if head.status == StatusCode::OK && body == BODY && is_right {
            Ok(id)
        } else {
            Err(format!("{path} was answered with {head:?} and {body:?}").into())
        }
    }
}
