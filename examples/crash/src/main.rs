//! A gateway that is killed with SIGKILL under load, and is started again. Its chats are in the SQLite file of the session
//! registry, and each of them ends exactly once.
//!
//! `cargo run -p crash`. The hook that writes the chats is in `chats.rs`, the gateway in `host.rs`.

use std::{collections::BTreeMap, env, io, path::Path, process::ExitCode};

use crash::{Chats, Client, Error, Server, Settings, TempDir, serve};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tracing_subscriber::filter::LevelFilter;

async fn demonstrate() -> Result<(), Error> {
    let dir = TempDir::new()?;
    let (program, file) = (env::current_exe()?, dir.file("sessions.db"));
    let args = |name: &str| {
        let (event_log, registry) = (dir.file("event_log"), format!("sqlite:{}", file.display()));
        Settings { event_log, registry, name: name.to_owned(), fault: "-".to_owned() }.to_args()
    };

    let server = Server::start(&program, &args("first")).await?;
    let (opened, mut known) = unbounded_channel();
    for _ in 0..8 {
        tokio::spawn(client(server.client(), opened.clone()));
    }
    drop(opened);
    let mut ids = Vec::new();
    while ids.len() < 100 {
        ids.push(known.recv().await.ok_or("the clients have stopped")?);
    }
    println!("eight clients have opened {} chats, and ended some; the process kills itself with SIGKILL", ids.len());
    server.client().die().await;
    let gone = server.gone().await?;
    println!("it has exited without an exit code: {:?}", gone.code);
    while let Some(id) = known.recv().await {
        ids.push(id);
    }

    let server = Server::start(&program, &args("second")).await?;
    println!("\na second process starts. {}", server.recovery);
    ids.push(server.client().open_recorded().await?);
    println!("it opens one more chat. SIGTERM");
    let gone = server.terminate().await?;
    print!("{}", gone.report);
    if gone.code != Some(0) {
        return Err("the second process did not shut down cleanly".into());
    }
    check(&file, &ids)
}

/// Opens and uses chats, and ends every third one, until the gateway is gone.
async fn client(client: Client, opened: UnboundedSender<String>) -> Result<(), Error> {
    for n in 1_u32.. {
        let id = client.open_recorded().await?;
        opened.send(id.clone())?;
        client.say(&id).await?;
        if n.is_multiple_of(3) {
            client.end(&id).await?;
        }
    }
    Ok(())
}

/// Prints the chats, and checks that each that a client knows is there and that each has ended exactly once.
fn check(file: &Path, ids: &[String]) -> Result<(), Error> {
    let chats = Chats::read(file)?;
    let mut summary = BTreeMap::<_, usize>::new();
    for chat in &chats {
        *summary.entry((chat.reason.as_deref().unwrap_or("active"), chat.ends)).or_default() += 1;
    }
    println!("\n{:<10} {:>5} {:>6}", "reason", "ends", "chats");
    for ((reason, ends), count) in summary {
        println!("{reason:<10} {ends:>5} {count:>6}");
    }
    if let Some(id) = ids.iter().find(|id| chats.iter().all(|chat| chat.id != **id)) {
        return Err(format!("a client knows the chat {id}, which is not in the table").into());
    }
    if let Some(wrong) = chats.iter().find(|chat| chat.ends != 1 || chat.ended_at.is_none()) {
        return Err(format!("not ended exactly once: {wrong:?}").into());
    }
    println!("\neach chat has ended exactly once");
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();
    let args: Vec<_> = env::args().skip(1).collect();
    let outcome = match args.split_first() {
        None => demonstrate().await,
        Some((command, settings)) if command == "serve" => match Settings::from_args(settings) {
            Ok(settings) => serve(settings).await,
            Err(error) => Err(error),
        },
        Some(_) => Err("no arguments are expected".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash: {error}");
            ExitCode::FAILURE
        }
    }
}
