//! What the process says to systemd: here, to a socket of the test.

use tokio::net::{TcpStream, UnixDatagram};

use crate::{
    chat,
    process::{Dir, Process, within},
};

async fn notice(socket: &UnixDatagram) -> String {
    let mut bytes = vec![0; 1024];
    let read = within("a notice", socket.recv(&mut bytes)).await.unwrap();
    String::from_utf8(bytes[..read].to_vec()).unwrap().trim().to_owned()
}

#[tokio::test]
async fn systemd_learns_when_the_unit_is_ready_and_when_it_stops() {
    let dir = Dir::new();
    let socket = UnixDatagram::bind(dir.path("notify.sock")).unwrap();
    let mut process = Process::start(&["systemd"], &[("NOTIFY_SOCKET", &dir.path("notify.sock"))]).await;
    let address = process.line_after("ready ").await;
    assert_eq!(notice(&socket).await, "READY=1");
    let (id, connection) = chat(TcpStream::connect(address).await.unwrap(), false).await;
    process.terminate().await;
    assert_eq!(notice(&socket).await, "STOPPING=1");
    assert_eq!(process.ends().await, [format!("{id} ended: shutdown")]);
    drop(connection);
}
