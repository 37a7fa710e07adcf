//! A gateway that kills itself with SIGKILL while it serves, is started again, and ends every session once.
//!
//! `cargo run -p crash` uses a SQLite file; `cargo run -p crash -- redis://127.0.0.1:6379` uses Redis.

use std::{collections::BTreeMap, env, io, process::ExitCode, time::Duration};

use crash::{Error, EventLog, Kind, Server, Settings, TempDir, serve};
use tracing_subscriber::filter::LevelFilter;

async fn demonstrate(registry: Option<String>) -> Result<(), Error> {
    let dir = TempDir::new()?;
    let registry = registry.unwrap_or_else(|| format!("sqlite:{}", dir.file("sessions.db").display()));
    let program = env::current_exe()?;
    let settings = |name: &str| Settings {
        event_log: dir.file("event_log"),
        registry: registry.clone(),
        name: name.to_owned(),
        fault: "-".to_owned(),
    };

    let server = Server::start(&program, &settings("first")).await?;
    let client = server.client();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(client.open().await?);
    }
    client.end(&ids[0]).await?;
    let successor = client.compact(&ids[1]).await?;
    ids.push(successor);
    // Waits until both ends are delivered. A kill between the hook and the removal of its record would repeat the end.
    let event_log = EventLog::open(&dir.file("event_log"), "-")?;
    while event_log.read()?.iter().filter(|entry| entry.kind == Kind::End).count() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ids.push(client.open().await?);
    println!("the first process has started {} sessions; one was deleted, one compacted", ids.len());

    println!("it kills itself with SIGKILL");
    client.die().await;
    let gone = server.gone().await?;
    println!("it has exited without an exit code: {:?}", gone.code);

    let server = Server::start(&program, &settings("second")).await?;
    println!("a second process starts. {}", server.recovery);
    let client = server.client();
    ids.push(client.open().await?);
    // A client that did not notice the crash: its session is noted again, and ends again.
    client.say(&ids[2]).await?;
    println!("SIGTERM");
    let gone = server.terminate().await?;
    print!("{}", gone.report);
    if gone.code != Some(0) {
        return Err("the second process did not shut down cleanly".into());
    }
    check(&event_log, &ids)
}

/// Checks that each generation of each session has had one end.
fn check(event_log: &EventLog, ids: &[String]) -> Result<(), Error> {
    let mut ends = BTreeMap::<_, Vec<_>>::new();
    for entry in event_log.read()?.into_iter().filter(|entry| entry.kind == Kind::End) {
        ends.entry(entry.id.clone()).or_default().push(entry);
    }
    println!("\n{:<20} {:<10} delivered by", "session", "reason");
    for (id, ends) in &ends {
        for end in ends {
            println!("{id:<20} {:<10} the {} process", end.reason, end.writer);
        }
    }
    for (n, id) in ids.iter().enumerate() {
        // The third one was used again after the crash.
        let expected = if n == 2 { 2 } else { 1 };
        let found = ends.get(id).map_or(0, Vec::len);
        if found != expected {
            return Err(format!("{id} has {found} ends instead of {expected}").into());
        }
    }
    println!("\nevery generation has exactly one session_end; the session that was used again has two generations");
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();
    let args: Vec<_> = env::args().skip(1).collect();
    let outcome = match args.split_first() {
        Some((command, settings)) if command == "serve" => match Settings::from_args(settings) {
            Ok(settings) => serve(settings).await,
            Err(error) => Err(error),
        },
        registry => demonstrate(registry.map(|(registry, _)| registry.clone())).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash: {error}");
            ExitCode::FAILURE
        }
    }
}
