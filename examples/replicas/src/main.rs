//! Three gateways on one Redis, behind a round-robin client: a rolling restart, then one is killed, then all shut down.
//!
//! `cargo run -p replicas` starts its own `redis-server`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, io,
    process::ExitCode,
    time::Duration,
};

use crash::{Entry, Error, EventLog, Kind, PATIENCE, Settings, serve};
use replicas::{Deployment, REPLICAS};
use tokio::time::{Instant, sleep};
use tracing_subscriber::filter::LevelFilter;

async fn demonstrate() -> Result<(), Error> {
    let mut deployment = Deployment::start(&env::current_exe()?).await?;
    let event_log = EventLog::open(&deployment.event_log(), "-")?;

    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(deployment.balancer().next().open().await?);
    }
    use_each_everywhere(&deployment, &ids).await?;
    table("six sessions, each used on every replica", &deployment, &event_log).await?;

    for index in 0..REPLICAS {
        let gone = deployment.stop(index).await?;
        print!("SIGTERM to {}: {}", name(index), gone.report);
        deployment.replace(index).await?;
        // The clients continue, and the new replica notes their sessions.
        use_each_everywhere(&deployment, &ids).await?;
    }
    table("after a rolling restart: no session has ended", &deployment, &event_log).await?;
    if ends(&event_log)?.iter().any(|end| ids.contains(&end.id)) {
        return Err("a session ended in the rolling restart".into());
    }

    let [(_, first), ..] = &deployment.clients()[..] else { return Err("no replica is running".into()) };
    first.end(&ids[0]).await?;
    let (last, only_there) = (REPLICAS - 1, deployment.clients()[REPLICAS - 1].1.open().await?);
    println!("{} is ended on one replica; {only_there} is held by {} only, which is killed", ids[0], name(last));
    deployment.kill(last).await?;
    until(&event_log, &only_there).await?;
    table("its lease has expired, and a survivor has ended its session", &deployment, &event_log).await?;

    for index in 0..last {
        let gone = deployment.stop(index).await?;
        print!("SIGTERM to {}: {}", name(index), gone.report);
    }
    ids.push(only_there);
    table("at the end", &deployment, &event_log).await?;
    check(&event_log, &ids)
}

fn name(index: usize) -> char {
    char::from(b'a' + index as u8)
}

async fn use_each_everywhere(deployment: &Deployment, ids: &[String]) -> Result<(), Error> {
    let balancer = deployment.balancer();
    for id in ids {
        for _ in 0..REPLICAS {
            balancer.next().say(id).await?;
        }
    }
    Ok(())
}

fn ends(event_log: &EventLog) -> Result<Vec<Entry>, Error> {
    Ok(event_log.read()?.into_iter().filter(|entry| entry.kind == Kind::End).collect())
}

/// Waits for the end of a session.
async fn until(event_log: &EventLog, id: &str) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while !ends(event_log)?.iter().any(|end| end.id == id) {
        if Instant::now() > deadline {
            return Err(format!("{id} did not end in time").into());
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Prints which replicas hold each session, and the ends so far.
async fn table(title: &str, deployment: &Deployment, event_log: &EventLog) -> Result<(), Error> {
    let mut rows = BTreeMap::<String, (BTreeSet<usize>, Vec<String>)>::new();
    for (index, client) in deployment.clients() {
        for id in client.sessions().await? {
            rows.entry(id).or_default().0.insert(index);
        }
    }
    for end in ends(event_log)? {
        rows.entry(end.id).or_default().1.push(format!("{} (by {})", end.reason, end.writer));
    }
    println!("\n{title}\n{:<20} a b c  ended", "session");
    for (id, (holders, ends)) in rows {
        let marks: Vec<_> = (0..REPLICAS).map(|index| if holders.contains(&index) { "x" } else { "." }).collect();
        println!("{id:<20} {}  {}", marks.join(" "), ends.join(", "));
    }
    println!();
    Ok(())
}

/// Checks that each session has had exactly one end.
fn check(event_log: &EventLog, ids: &[String]) -> Result<(), Error> {
    let ends = ends(event_log)?;
    for id in ids {
        let n = ends.iter().filter(|end| end.id == *id).count();
        if n != 1 {
            return Err(format!("{id} has {n} ends instead of 1").into());
        }
    }
    if ends.len() != ids.len() {
        return Err(format!("{} ends of {} sessions", ends.len(), ids.len()).into());
    }
    println!("{} sessions, three replicas, seven processes: exactly one session_end each", ids.len());
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let level = env::var("GATEWAY_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::ERROR);
    tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).init();
    let args: Vec<_> = env::args().skip(1).collect();
    let outcome = match args.split_first() {
        Some((command, settings)) if command == "serve" => match Settings::from_args(settings) {
            Ok(settings) => serve(settings).await,
            Err(error) => Err(error),
        },
        _ => demonstrate().await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replicas: {error}");
            ExitCode::FAILURE
        }
    }
}
