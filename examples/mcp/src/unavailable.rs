//! [`Unavailable`]: what the shutdown has cut short is answered with 503.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::http::{Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tower::Service;

/// A host on rmcp that answers 503 where rmcp answers 500 because its token was cancelled.
///
/// An `initialize` under way has no session yet, so no drain waits for it. When the token ends its worker, rmcp reports
/// an error of the server. 503 is the truth: the client may try again, with the next process.
#[derive(Clone, Debug)]
pub(crate) struct Unavailable<S> {
    host: S,
    token: CancellationToken,
}

impl<S> Unavailable<S> {
    /// `token` is that of the host's configuration.
    pub(crate) const fn when_cancelled(token: CancellationToken, host: S) -> Self {
        Self { host, token }
    }
}

impl<S, A, B> Service<Request<A>> for Unavailable<S>
where
    S: Service<Request<A>, Response = Response<B>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.host.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (answer, token) = (self.host.call(request), self.token.clone());
        Box::pin(async move {
            let mut response = answer.await?;
            if token.is_cancelled() && response.status() == StatusCode::INTERNAL_SERVER_ERROR {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            Ok(response)
        })
    }
}
