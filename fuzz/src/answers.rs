//! A registry that answers anything at any time: fewer answers than changes, nonsense, errors, silence, panics.

use std::{
    future::{Future, pending},
    sync::{Arc, Mutex, atomic::AtomicU64, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tower_session_end::{
    ActiveSessions, EndReason, GenerationId, Session, SessionEnd,
    registry::{Applied, Change, EndRecord, Heartbeat, Notice, Orphan, Record, Registry, RegistryError},
};

use crate::input::Input;

const IDS: &[&str] = &["a", "b", "c", "d"];

/// Its answers are the bytes of the input, from the end on; then it is good again.
#[derive(Clone)]
struct Liar(Arc<Mutex<Vec<u8>>>);

impl Liar {
    fn byte(&self) -> u8 {
        self.0.lock().map(|mut bytes| bytes.pop().unwrap_or(0)).unwrap_or(0)
    }

    async fn trouble(&self) -> Result<(), RegistryError> {
        match self.byte() {
            200..=219 => Err(RegistryError::unavailable("down")),
            220..=224 => Err(RegistryError::Fenced),
            225..=229 => Err(RegistryError::Conflict),
            230..=239 => Err(RegistryError::DataLost),
            240..=244 => Err(RegistryError::invalid("damaged")),
            245..=249 => pending().await,
            250..=252 => {
                tokio::time::sleep(Duration::from_millis(u64::from(self.byte()) * 8)).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn event(&self) -> GenerationId {
        format!("{:032x}-{}", self.byte() % 4, self.byte() % 4).parse().expect("an event id")
    }

    fn record(&self) -> Record {
        let session = Session::try_from(IDS[usize::from(self.byte()) % IDS.len()]).expect("a valid id");
        Record::new(session, self.event(), SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(self.byte()) << 32))
    }

    fn answer(&self, change: &Change) -> Applied {
        match (self.byte(), change) {
            (0..=127, Change::Hold { .. }) => Applied::Created,
            (0..=127, Change::Release { .. } | Change::End { .. }) => Applied::Owned { requests: 1 },
            (128..=150, _) => Applied::Joined(self.record()),
            (151..=170, _) => Applied::Gone,
            (171..=190, _) => Applied::HeldElsewhere,
            (191..=210, _) => Applied::Owned { requests: u64::MAX },
            (211..=230, _) => Applied::Created,
            _ => Applied::Ok,
        }
    }
}

impl Registry for Liar {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.trouble().await?;
        let few = usize::from(self.byte() > 230);
        Ok(changes.iter().skip(few).map(|change| self.answer(change)).collect())
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.trouble().await?;
        let notice = || {
            let Record { session, generation, .. } = self.record();
            Notice::new(session.id, generation, Duration::from_secs(u64::from(self.byte()) << 56))
        };
        let notices = (0..self.byte() / 64).map(|_| notice()).collect();
        Ok(Heartbeat::new(notices, self.byte() > 240, u64::from(self.byte()) << 56))
    }

    async fn claim_orphans(&self, _: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.trouble().await?;
        let orphan = || {
            let next = (self.byte() > 200).then(|| Session::try_from("next").unwrap());
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(self.byte()));
            Orphan::new(self.record(), EndRecord::new(EndReason::Lost, next, at, u64::MAX), u32::from(self.byte() / 32))
        };
        Ok((0..self.byte() / 64).map(|_| orphan()).collect())
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.trouble().await
    }

    fn lease_is_valid(&self) -> bool {
        self.byte() < 230
    }
}

/// A handle on such a registry: no panic, no stop that takes longer than it may, and a report that adds up.
pub fn answers(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(run(data));
}

async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    let begun = Instant::now();
    let output = tokio::time::timeout(Duration::from_secs(86_400), future).await;
    let output = output.unwrap_or_else(|_| panic!("{what} never ends"));
    assert!(begun.elapsed() <= limit, "{what} took {:?}", begun.elapsed());
    output
}

async fn run(data: &[u8]) {
    let (steps, lies) = data.split_at(data.len() / 3);
    let liar = Liar(Arc::new(Mutex::new(lies.to_vec())));
    let ends = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&ends);
    let sessions = ActiveSessions::builder()
        .registry(liar)
        .max_sessions(3)
        .on_session_start(|_| std::future::ready(()))
        .on_session_end(move |_: SessionEnd| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::ready(())
        })
        .build()
        .expect("legal settings");
    let mut input = Input(steps);
    let mut guards = Vec::new();
    let slack = Duration::from_millis(100);
    for _ in 0..32 {
        if input.is_used_up() {
            break;
        }
        match input.below(10) {
            0..=2 => drop(sessions.note(input.one_of(IDS))),
            3 => drop(sessions.end(input.one_of(IDS), EndReason::Deleted)),
            4 => drop(sessions.forget(input.one_of(IDS))),
            5 => drop(sessions.compact(input.one_of(IDS), input.one_of(IDS))),
            6 => guards.push(sessions.guard(input.one_of(IDS)).unwrap()),
            7 => drop(guards.pop()),
            8 => {
                let _ = within(Duration::from_secs(10) + slack, "a recovery", sessions.recover()).await;
            }
            _ => {
                let driver = sessions.shutdown_on(pending::<()>());
                let _ = tokio::time::timeout(Duration::from_millis(u64::from(input.byte()) * 20), driver).await;
            }
        }
    }
    drop(guards);
    let stop = Duration::from_secs(2) + Duration::from_secs(10) + slack;
    let shutdown = tokio::spawn(sessions.shutdown_on(async {}));
    let finished = within(stop, "the stop", sessions.finish(pending::<()>())).await;
    within(slack, "the shutdown future", shutdown).await.expect("no panic");
    for report in [&finished.report.drain, &finished.report.sessions] {
        let here = report.ended + report.failed + report.kept + report.forgotten + report.unfinished_count;
        let elsewhere = report.held_elsewhere + report.ended_elsewhere + report.handed_over;
        assert_eq!(report.total(), here + elsewhere, "{report}");
    }
    assert!(sessions.is_empty());
    assert!(ends.load(Ordering::SeqCst) >= finished.report.sessions.ended);
    let _ = within(slack, "a drain after it all", sessions.drain(EndReason::Shutdown)).await;
}
