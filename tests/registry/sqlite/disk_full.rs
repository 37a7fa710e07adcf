//! Disks that are full, or may only be read.
#![cfg(unix)]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use super::{
    process::Process,
    support::{Dir, filled, take_over_all},
};

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What another process says that opens it, without root's right to write everything.
fn open_as_a_user(path: &Path) -> String {
    let is_root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    let prefix: &[&str] = if is_root { &["setpriv", "--bounding-set=-all"] } else { &[] };
    Process::start_by(prefix, "open", path).hear().unwrap()
}

#[tokio::test]
async fn a_file_that_may_only_be_read_is_refused() {
    let dir = Dir::new();
    filled(&dir, 1).await;
    mode(&dir.file(), 0o400);
    let said = open_as_a_user(&dir.file());
    assert!(said.starts_with("Unavailable(") && said.contains("sessions.db is read-only"), "{said}");
    mode(&dir.file(), 0o600);
    let said = open_as_a_user(&dir.file());
    assert!(said.starts_with("open, and then Ok([Created])"), "{said}");
}

#[tokio::test]
async fn a_directory_that_may_only_be_read_is_refused() {
    let dir = Dir::new();
    mode(dir.path(), 0o500);
    let new = open_as_a_user(&dir.file());
    mode(dir.path(), 0o700);
    assert!(new.starts_with("Unavailable(") && new.contains("sessions.db-leases: Permission denied"), "{new}");
    filled(&dir, 1).await;
    mode(dir.path(), 0o500);
    let old = open_as_a_user(&dir.file());
    mode(dir.path(), 0o700);
    assert!(old.starts_with("Unavailable(") && old.contains("sessions.db"), "{old}");
}

#[tokio::test]
async fn the_file_is_for_its_owner_alone() {
    let dir = Dir::new();
    filled(&dir, 1).await;
    assert_eq!(fs::metadata(dir.file()).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(dir.leases()).unwrap().mode() & 0o777, 0o700);
}

/// The words before the program, so that it finds a small disk in the directory.
fn on_a_small_disk(dir: &Dir) -> Option<Vec<String>> {
    let small = "mount -t tmpfs -o size=1m none \"$0\" && exec \"$@\"";
    let words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", small, dir.path().to_str().unwrap()];
    let can = Command::new(words[0]).args(&words[1..]).arg("true").status();
    if can.is_ok_and(|status| status.success()) {
        return Some(words.map(str::to_owned).to_vec());
    }
    println!("nobody may mount a small disk here: `a_file_that_may_not_grow_..` shows some of it");
    None
}

#[test]
fn g17_a_full_disk_fails_no_request_and_stops_no_end() {
    let dir = Dir::new();
    let Some(prefix) = on_a_small_disk(&dir) else { return };
    let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
    let said = Process::start_by(&prefix, "serve on a full disk", &dir.file()).hear_all();
    assert!(said[0].contains("disk is full"), "{said:?}");
    let births = "50 births, ";
    let slow = said[2].strip_prefix(births).and_then(|rest| rest.split_once(' ')).unwrap();
    assert!(slow.0.parse::<u32>().unwrap() < 25, "{}", said[2]);
    assert!(said[2].ends_with("degraded: true"), "{}", said[2]);
    assert_eq!(said[3], "back, and durable: true");
    let ends = said.iter().filter(|line| line.ends_with(" shutdown")).count();
    assert_eq!((ends, said.last().unwrap().as_str()), (51, "clean: true"), "{said:?}");
}

#[test]
fn a_disk_that_is_full_is_an_error_until_there_is_room() {
    let dir = Dir::new();
    let Some(prefix) = on_a_small_disk(&dir) else { return };
    let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
    let said = Process::start_by(&prefix, "fill", &dir.file()).hear_all();
    assert_eq!(said.len(), 5, "{said:?}");
    assert!(
        said[0].starts_with("Unavailable(") && said[0].contains("sessions.db: database or disk is full"),
        "{said:?}"
    );
    assert!(said[2].starts_with("Some(Unavailable(") && said[2].contains("other.db"), "{said:?}");
    assert_eq!(said[3..], ["[Created]", "all are there"]);
}

#[tokio::test]
async fn a_file_that_may_not_grow_is_an_error_and_loses_nothing() {
    let dir = Dir::new();
    let limited = "trap '' XFSZ; ulimit -f 300; exec \"$0\" \"$@\"";
    let said = Process::start_by(&["sh", "-c", limited], "grow", &dir.file()).hear_all();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("Unavailable(") && said[0].contains("sessions.db: "), "{said:?}");
    let found = take_over_all(&dir.open()).await.len();
    assert!(found > 0 && said[1] == found.to_string(), "{found} of {}", said[1]);
}
