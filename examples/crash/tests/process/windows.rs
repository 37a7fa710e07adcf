//! Kills at critical moments.

use std::time::Duration;

use crash::{Kind, PATIENCE, Server};

use crate::support::{On, Site, program};

const BOTH: [On; 2] = [On::Sqlite, On::Redis];

/// Starts some sessions in a process, and kills it.
async fn killed_with(site: &Site, fault: &str, sessions: usize) -> Vec<String> {
    let server = site.start("killed", fault).await;
    let client = server.client();
    let mut ids = Vec::new();
    for _ in 0..sessions {
        ids.push(client.open().await.unwrap());
    }
    server.kill().await.unwrap();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_killed_between_the_record_and_the_start_hook() {
    for on in BOTH {
        let site = Site::new(on).await;
        let ids = killed_with(&site, "start-hangs", 3).await;
        assert!(site.entries().is_empty(), "no start hook may have finished");
        site.settle(&ids).await;
        assert_eq!(site.assert_each_has_its_end(&ids), 0);
        assert!(site.ends().iter().all(|end| end.reason == "lost"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_two_processes_that_recover_at_once_deliver_each_end_once() {
    for on in BOTH {
        let site = Site::new(on).await;
        let ids = killed_with(&site, "-", 300).await;
        let one = Server::spawn(program(), &site.settings("one", "1").to_args()).unwrap();
        let two = Server::spawn(program(), &site.settings("two", "1").to_args()).unwrap();
        let (one, two) = tokio::join!(one.listening(), two.listening());
        let (one, two) = (one.unwrap(), two.unwrap());
        println!("{on:?}: one {}; two {}", one.recovery, two.recovery);
        site.until_each_has_an_end(&ids).await;
        for server in [one, two] {
            assert_eq!(server.terminate().await.unwrap().code, Some(0));
        }
        site.settle(&ids).await;
        assert_eq!(site.assert_each_has_its_end(&ids), 0, "{on:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_a_process_killed_during_its_recovery_loses_no_end() {
    for on in BOTH {
        let site = Site::new(on).await;
        let ids = killed_with(&site, "-", 600).await;
        // 256 hooks run at a time, for a second each.
        let recoverer = Server::spawn(program(), &site.settings("recoverer", "1000").to_args()).unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while site.ends().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "the recovery makes no progress");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        recoverer.kill().await.unwrap();
        assert!(site.ends().len() < ids.len(), "the recovery finished before the kill");
        site.settle(&ids).await;
        let repeated = site.assert_each_has_its_end(&ids);
        println!("{on:?}: {repeated} of {} ends were delivered twice", ids.len());
        assert!(site.entries().iter().filter(|entry| entry.kind == Kind::End).all(|end| end.reason == "lost"));
    }
}
