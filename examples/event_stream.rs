//! Shuts down the same axum server twice while two clients listen to an event stream. Without the layer the server
//! waits until the clients disconnect. With the layer it exits at once, and both clients see a clean end of the
//! stream.
//!
//! ```text
//! cargo run --example event_stream
//! ```
//!
//! `with_graceful_shutdown` waits for every response in flight, and an event stream is in flight until its client
//! disconnects. The layer ends the stream of a session when the session ends, and all other streams when the session
//! drain is over. To the client it looks as if the handler had ended the stream, not as a broken connection.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    process::{Command, ExitCode},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::sse::{Event, Sse},
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    time::{Instant, timeout},
};
use tower_session_end::{ActiveSessions, BoxError, SessionEnd, signal};
use tracing_subscriber::filter::LevelFilter;

/// How long the example waits for the server that does not shut down.
const PATIENCE: Duration = Duration::from_secs(3);

const SESSION: &str = "chat-1";

/// The server of both runs.
fn app(sessions: &ActiveSessions) -> Router {
    Router::new().route("/open", post(open)).route("/events", get(events)).with_state(sessions.clone())
}

async fn open() -> [(&'static str, &'static str); 1] {
    [("x-session-id", SESSION)]
}

/// A greeting, a last event when the shutdown begins, and no end.
///
/// The layer polls the stream once more before it ends it, so an event that is ready by then is not lost. Like many
/// handlers, this one never ends its stream.
async fn events(State(sessions): State<ActiveSessions>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let closing = sessions.closing();
    let greeting = stream::once(async { Ok(Event::default().data("hello")) });
    let farewell = stream::once(async move {
        closing.await;
        Ok(Event::default().data("bye"))
    });
    Sse::new(greeting.chain(farewell).chain(stream::pending()))
}

/// `with_graceful_shutdown` alone. Returns how long the shutdown took, and whether the example had to abort it.
async fn without_the_layer() -> Result<(Duration, bool), BoxError> {
    // The handlers need a handle; it is never drained.
    let sessions = ActiveSessions::builder().build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;

    // The signals of the crate are ordinary futures.
    let signals = signal::terminate();
    let (told, signalled) = oneshot::channel();
    let server = axum::serve(listener, app(&sessions)).with_graceful_shutdown(async move {
        signals.await;
        let _ = told.send(Instant::now());
    });
    let mut server = tokio::spawn(server.into_future());

    let _listening = Listening::begin(address).await?;
    raise_sigterm()?;
    let begun = signalled.await?;

    let was_cut = match timeout(PATIENCE, &mut server).await {
        Ok(served) => {
            served??;
            false
        }
        Err(_) => {
            server.abort();
            true
        }
    };
    Ok((begun.elapsed(), was_cut))
}

/// The layer, `shutdown_on` and `finish`. Returns how long the shutdown took.
async fn with_the_layer() -> Result<Duration, BoxError> {
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let sessions = ActiveSessions::builder()
        .on_session_end(move |end: SessionEnd| {
            let ended = ended.clone();
            async move { ended.send(end) }
        })
        .build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;

    let shutdown = sessions.shutdown_on(signal::terminate());
    let server = axum::serve(listener, app(&sessions).layer(sessions.layer())).with_graceful_shutdown(shutdown);
    let served = async { Ok(sessions.finish(server).await.into_result()?) };

    let visit = async {
        let listening = Listening::begin(address).await?;
        let closing = sessions.closing();
        raise_sigterm()?;
        closing.await;
        let begun = Instant::now();
        timeout(PATIENCE, listening.until_the_end()).await.map_err(|_| "the streams did not end")??;
        Ok::<_, BoxError>(begun)
    };
    let (report, begun) = tokio::try_join!(served, visit)?;
    let elapsed = begun.elapsed();

    println!("{report}");
    let end = ends.try_recv().map_err(|_| "the session had no session_end")?;
    check(end.session.id == SESSION && ends.try_recv().is_err(), "one session had more than one session_end")?;
    check(report.is_clean(), "the shutdown was not clean")?;
    Ok(elapsed)
}

/// Two clients that have received their first event: one with a session, one without.
struct Listening {
    streams: [Body; 2],
}

impl Listening {
    async fn begin(address: SocketAddr) -> Result<Self, BoxError> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let opened = client.request(axum::http::Request::post(url(address, "/open")).body(Body::empty())?).await?;
        check(opened.status().is_success(), "the session did not start")?;
        let streams = [listen(&client, address, Some(SESSION)).await?, listen(&client, address, None).await?];
        Ok(Self { streams })
    }

    /// Reads both streams. A connection that closes without the terminating chunk is an error here.
    async fn until_the_end(self) -> Result<(), BoxError> {
        for stream in self.streams {
            let rest = stream.collect().await?.to_bytes();
            check(rest == "data: bye\n\n", "a client did not get the last event")?;
        }
        Ok(())
    }
}

async fn listen(
    client: &Client<HttpConnector, Body>,
    address: SocketAddr,
    session: Option<&str>,
) -> Result<Body, BoxError> {
    let mut request = axum::http::Request::get(url(address, "/events"));
    if let Some(id) = session {
        request = request.header("x-session-id", id);
    }
    let mut stream = Body::new(client.request(request.body(Body::empty())?).await?.into_body());
    let first = stream.frame().await.ok_or("the stream ended before its first event")??;
    check(first.data_ref().is_some_and(|data| data == "data: hello\n\n"), "the first event is not the greeting")?;
    Ok(stream)
}

fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

fn check(holds: bool, complaint: &'static str) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(complaint.into()) }
}

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

async fn run() -> Result<(), BoxError> {
    let (plain, was_cut) = without_the_layer().await?;
    println!("without the layer: still running {plain:.1?} after the signal, aborted by the example");
    check(was_cut, "the server without the layer shut down by itself, so the example shows nothing")?;

    let bounded = with_the_layer().await?;
    println!("with the layer:    exited {bounded:.1?} after the signal; both clients saw a last event and a clean end");
    // Takes milliseconds, unless the machine is busy.
    check(bounded < PATIENCE / 3, "the server with the layer took too long")
}

#[tokio::main]
async fn main() -> ExitCode {
    // Shows warnings and errors; a successful run logs none.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match timeout(Duration::from_secs(30), run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("did not shut down within 30 s".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("event_stream failed: {error}");
            ExitCode::FAILURE
        }
    }
}
