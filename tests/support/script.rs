//! A body that plays a script.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// What the body does at one poll.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Data(&'static str),
    Trailers(HeaderMap),
    Fail(&'static str),
    /// Once not ready, and woken at once.
    Wait,
    /// Never ready again.
    Hang,
}

#[derive(Clone, Debug)]
pub(crate) struct Script {
    steps: VecDeque<Step>,
    hint: Hint,
}

/// How much a script says of itself beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Nothing, as a stream does.
    None,
    /// Bounds that are not exact.
    Range(u64, u64),
    /// The exact length of what is left, and whether that is the end.
    Exact,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>, hint: Hint) -> Self {
        Self { steps: steps.into_iter().collect(), hint }
    }
}

/// The error of [`Step::Fail`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failed(pub(crate) &'static str);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Failed {}

impl Body for Script {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(data.as_bytes()))))),
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Fail(error)) => Poll::Ready(Some(Err(Failed(error)))),
            Some(Step::Wait) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Hang) => {
                self.steps.push_front(Step::Hang);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.hint == Hint::Exact && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let left = |step: &Step| if let Step::Data(data) = step { data.len() as u64 } else { 0 };
        match self.hint {
            Hint::None => SizeHint::default(),
            Hint::Range(lower, upper) => {
                let mut hint = SizeHint::new();
                hint.set_lower(lower);
                hint.set_upper(upper);
                hint
            }
            Hint::Exact => SizeHint::with_exact(self.steps.iter().map(left).sum()),
        }
    }
}
