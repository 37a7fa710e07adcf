//! The built example as a whole process: it runs its own clients and sends itself SIGTERM.

use std::{process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

#[tokio::test]
async fn the_example_exits_cleanly_with_the_right_values() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metrics-example"));
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(Duration::from_secs(120), output).await.expect("the process must exit").unwrap();
    let (said, logged) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}{logged}");
    assert_eq!(said.matches("\nsession_active ").count(), 2, "{said}");
    assert!(said.trim_end().ends_with("every value is right, and no session id appears"), "{said}");
    assert!(logged.is_empty(), "{logged}");
}
