//! The way to a server: it can be led to another one, cut, and made to hold back what was sent.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// An address that stands for whichever server it leads to.
pub(crate) struct Way {
    addr: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct State {
    target: u16,
    /// Counts the cuts: a connection that is older is over.
    cuts: u64,
    /// Connections with no more cuts than this get nothing through to the server.
    held_back: Option<u64>,
}

impl Way {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (state, seen) = watch::channel(State { target: port, cuts: 0, held_back: None });
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(lead(client, seen.clone()));
            }
        });
        Self { addr, state, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}/", self.addr)
    }

    /// Cuts every connection; new ones lead to this server.
    pub(crate) fn lead_to(&self, port: u16) {
        self.state.send_modify(|state| {
            state.target = port;
            state.cuts += 1;
        });
    }

    /// What is sent over the present connections stays under way.
    pub(crate) fn hold_back(&self) {
        self.state.send_modify(|state| state.held_back = Some(state.cuts));
    }

    /// The clients lose their connections.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// What was held back arrives, cut or not.
    pub(crate) fn let_through(&self) {
        self.state.send_modify(|state| state.held_back = None);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn lead(mut client: TcpStream, mut seen: watch::Receiver<State>) {
    let State { target, cuts, .. } = *seen.borrow_and_update();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let held = |state: &State| state.held_back.is_some_and(|up_to| cuts <= up_to);
    let (mut sent, mut answered) = (Vec::new(), Vec::new());
    while seen.borrow().cuts == cuts {
        tokio::select! {
            read = client.read_buf(&mut sent) => {
                if !matches!(read, Ok(1..)) {
                    return;
                }
            }
            read = server.read_buf(&mut answered) => {
                if !matches!(read, Ok(1..)) || client.write_all(&answered).await.is_err() {
                    return;
                }
                answered.clear();
            }
            changed = seen.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        let held = held(&seen.borrow());
        if !held && !sent.is_empty() {
            if server.write_all(&sent).await.is_err() {
                return;
            }
            sent.clear();
        }
    }
    drop(client);
    if !sent.is_empty() && seen.wait_for(|state| !held(state)).await.is_ok() {
        let _ = server.write_all(&sent).await;
        let _ = server.read_buf(&mut answered).await;
    }
}
