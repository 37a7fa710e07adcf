//! The built example as a whole process: it runs its own clients and sends itself SIGTERM.
#![cfg(unix)]

use std::process::Stdio;

use tokio::{process::Command, time::timeout};

use crate::support::PATIENCE;

#[tokio::test]
async fn the_example_exits_cleanly_and_every_session_has_its_end() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tower-sessions-example"));
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(2 * PATIENCE, output).await.expect("the process must exit").unwrap();
    let (said, logged) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}{logged}");
    // Five servers: four with five generations each, and the last with two.
    assert_eq!(said.lines().filter(|line| line.starts_with("== ")).count(), 5, "{said}");
    assert_eq!(said.lines().filter(|line| *line == "SIGTERM").count(), 5, "{said}");
    assert_eq!(said.matches("session_start  ").count(), 22, "{said}");
    assert_eq!(said.matches("session_end    ").count(), 22, "{said}");
    assert!(said.trim_end().ends_with("every session had exactly one session_end"), "{said}");
    assert!(logged.is_empty(), "{logged}");
}
