//! A host that misbehaves on request.

use std::{pin::Pin, sync::Arc};

use grpc::{Agent, ChatReply, ChatRequest, Empty, OpenRequest, SESSION_COMPACTED_FROM, SESSION_END, SESSION_ID, Tick};
use tokio::sync::{Notify, mpsc};
use tokio_stream::{Stream, StreamExt, iter, pending};
use tonic::{Request, Response, Status, async_trait, metadata::MetadataMap};
use tower_session_end::StreamKind;

/// The metadata key with which a call selects the behaviour.
const MODE: &str = "x-mode";

/// The behaviour that a call selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The usual answer; a stream ends after three messages.
    Fine,
    /// An error alone, which names the session.
    Fails,
    /// An error that ends the session.
    Ends,
    /// A stream that fails after two messages.
    Tears,
    /// An endless stream.
    Stays,
    /// As `Stays`, marked as one to which the client listens.
    Listens,
    /// An answer that waits for [`OddAgent::release`].
    Waits,
}

impl Mode {
    const ALL: [(Self, &str); 7] = [
        (Self::Fine, "fine"),
        (Self::Fails, "fails"),
        (Self::Ends, "ends"),
        (Self::Tears, "tears"),
        (Self::Stays, "stays"),
        (Self::Listens, "listens"),
        (Self::Waits, "waits"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(mode, _)| *mode == self).unwrap().1
    }

    pub(crate) fn of<T>(self, mut request: Request<T>) -> Request<T> {
        request.metadata_mut().insert(MODE, self.name().parse().unwrap());
        request
    }

    fn wanted(metadata: &MetadataMap) -> Self {
        let name = metadata.get(MODE).map_or("fine", |mode| mode.to_str().unwrap());
        Self::ALL.iter().find(|(_, known)| *known == name).unwrap().0
    }
}

/// A host without state: it accepts every id.
#[derive(Clone, Debug)]
pub(crate) struct OddAgent {
    arrived: mpsc::UnboundedSender<()>,
    released: Arc<Notify>,
}

impl OddAgent {
    /// A host, and a receiver of the calls that wait.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<()>) {
        let (arrived, arrivals) = mpsc::unbounded_channel();
        (Self { arrived, released: Arc::default() }, arrivals)
    }

    /// Releases the answer of a waiting call.
    pub(crate) fn release(&self) {
        self.released.notify_one();
    }

    async fn outcome(&self, metadata: &MetadataMap) -> Result<(), Status> {
        match Mode::wanted(metadata) {
            Mode::Fails => {
                let mut status = Status::with_details(tonic::Code::DataLoss, "an error: ü%", (&b"\x00\x01"[..]).into());
                status.metadata_mut().insert(SESSION_ID, "never".parse().unwrap());
                Err(status)
            }
            Mode::Ends => {
                let mut status = Status::not_found("expired");
                status.metadata_mut().insert(SESSION_END, "idle".parse().unwrap());
                Err(status)
            }
            Mode::Waits => {
                self.arrived.send(()).unwrap();
                self.released.notified().await;
                Ok(())
            }
            Mode::Fine | Mode::Tears | Mode::Stays | Mode::Listens => Ok(()),
        }
    }
}

#[async_trait]
impl Agent for OddAgent {
    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<Empty>, Status> {
        self.outcome(request.metadata()).await?;
        let mut response = Response::new(Empty {});
        response.metadata_mut().insert(SESSION_ID, request.get_ref().key.parse().unwrap());
        Ok(response)
    }

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<ChatReply>, Status> {
        self.outcome(request.metadata()).await?;
        let mut response = Response::new(ChatReply { reply: request.get_ref().message.clone(), message_count: 1 });
        if let Some(id) = request.metadata().get(SESSION_ID) {
            response.metadata_mut().insert(SESSION_ID, id.clone());
        }
        Ok(response)
    }

    async fn compact(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.outcome(request.metadata()).await?;
        let old = request.metadata().get(SESSION_ID).unwrap();
        let mut response = Response::new(Empty {});
        response.metadata_mut().insert(SESSION_COMPACTED_FROM, old.clone());
        response.metadata_mut().insert(SESSION_ID, format!("{}-next", old.to_str().unwrap()).parse().unwrap());
        Ok(response)
    }

    async fn close(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.outcome(request.metadata()).await?;
        let mut response = Response::new(Empty {});
        response.metadata_mut().insert(SESSION_END, "deleted".parse().unwrap());
        Ok(response)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Tick, Status>> + Send>>;

    async fn watch(&self, request: Request<Empty>) -> Result<Response<Self::WatchStream>, Status> {
        self.outcome(request.metadata()).await?;
        let ticks = (1..=3).map(|number| Ok(Tick { number }));
        let stream: Self::WatchStream = match Mode::wanted(request.metadata()) {
            Mode::Tears => {
                let mut status = Status::aborted("torn");
                status.metadata_mut().insert("x-more", "in the trailers".parse().unwrap());
                status.metadata_mut().insert(SESSION_END, "reset".parse().unwrap());
                Box::pin(iter(ticks.take(2).chain([Err(status)])))
            }
            Mode::Stays | Mode::Listens => Box::pin(iter(ticks).chain(pending())),
            _ => Box::pin(iter(ticks)),
        };
        let mut response = Response::new(stream);
        if Mode::wanted(request.metadata()) == Mode::Listens {
            response.extensions_mut().insert(StreamKind::Listening);
        }
        if let Some(id) = request.metadata().get(SESSION_ID) {
            response.metadata_mut().insert(SESSION_ID, id.clone());
        }
        Ok(response)
    }
}
