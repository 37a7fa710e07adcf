//! The built example as a whole process: its own clients, its own SIGTERM.

use std::{process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

#[tokio::test]
async fn the_example_runs_by_itself_and_every_number_is_right() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metrics-example"));
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(Duration::from_secs(120), output).await.expect("it ends by itself").unwrap();
    let (said, logged) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}{logged}");
    assert_eq!(said.matches("\nsession_active ").count(), 2, "{said}");
    assert!(said.trim_end().ends_with("every number is right, and no id is in any of it"), "{said}");
    assert!(logged.is_empty(), "{logged}");
}
