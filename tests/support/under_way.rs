//! Requests that the host has not answered yet, and a stop that does not wait for them.

use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tokio::sync::oneshot;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, Phase, SessionBody, SessionLayer};

type Layered = Response<SessionBody<Empty<Bytes>>>;
type Answering = Pin<Box<dyn Future<Output = Layered> + Send>>;

/// A request that has come to the host, which has not answered yet.
pub(crate) struct UnderWay {
    host: oneshot::Sender<Response<Empty<Bytes>>>,
    response: task::Spawn<Answering>,
}

impl UnderWay {
    pub(crate) fn begin(layer: &SessionLayer, request: Request<()>) -> Self {
        let (host, answer) = oneshot::channel();
        let mut answer = Some(answer);
        let service = service_fn(move |_: Request<()>| {
            let answer = answer.take().unwrap();
            async { Ok::<_, Infallible>(answer.await.unwrap()) }
        });
        let call = layer.layer(service).call(request);
        let mut response = task::spawn(Box::pin(async { call.await.unwrap() }) as Answering);
        assert_pending!(response.poll());
        Self { host, response }
    }

    /// The host answers, and the layer lets it through or not.
    pub(crate) fn answer(self, answer: Response<Empty<Bytes>>) -> Layered {
        let Self { host, mut response } = self;
        host.send(answer).unwrap();
        assert!(response.is_woken());
        assert_ready!(response.poll())
    }

    /// The layer answers in the place of the host.
    pub(crate) fn give_up(mut self) -> Layered {
        assert!(self.response.is_woken());
        assert_ready!(self.response.poll())
    }
}

/// A stop, from the signal to the end of `finish`, with a server that never ends by itself.
pub(crate) async fn stop(sessions: &ActiveSessions) {
    let shutdown = tokio::spawn(sessions.shutdown_on(async {}));
    let finished = sessions.finish(pending::<()>()).await;
    shutdown.await.unwrap();
    assert!(finished.report.connections.timed_out);
    assert_eq!(sessions.phase(), Phase::Closed);
}
