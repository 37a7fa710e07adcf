//! The balance: what the hooks were told, against what was promised, and what the schedule excuses.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
};

use crash::{Entry, Error, Kind};

use crate::{
    load::{Load, Request},
    site::{Deed, Exits, Site, What},
};

/// A record may be this late: a group of changes, on a busy machine. In microseconds.
const SLACK: u64 = 1_000_000;
/// A hook that was under way returns within this time.
const HOOK: u64 = 100_000;
/// Times are rounded to milliseconds.
const CLOCKS: u64 = 5_000;
/// How far around a violation the schedule is shown.
const AROUND: u64 = 6_000_000;

/// One generation, as the hooks saw it.
#[derive(Default)]
struct Generation {
    id: String,
    /// The number of the line, and the line.
    starts: Vec<(usize, Entry)>,
    ends: Vec<(usize, Entry)>,
}

/// A broken promise.
struct Violation {
    what: &'static str,
    id: String,
    at: u64,
    text: String,
}

pub(crate) struct Balance {
    deeds: Vec<Deed>,
    requests: Vec<Request>,
    entries: Vec<Entry>,
    degraded: HashMap<String, Vec<(u64, u64)>>,
    counts: BTreeMap<&'static str, usize>,
    violations: Vec<Violation>,
}

impl Balance {
    pub(crate) fn of(site: &Site, load: &Load) -> Result<Self, Error> {
        let mut balance = Self {
            deeds: site.deeds(),
            requests: load.requests(),
            entries: site.entries()?,
            degraded: site.degraded()?,
            counts: BTreeMap::new(),
            violations: Vec::new(),
        };
        balance.deeds.sort_by_key(|deed| deed.from);
        balance.count();
        Ok(balance)
    }

    fn count(&mut self) {
        let mut generations = HashMap::<String, Generation>::new();
        let mut writers = HashMap::<String, String>::new();
        let mut keys = HashMap::<String, String>::new();
        for (line, entry) in self.entries.clone().into_iter().enumerate() {
            let generation = generations.entry(entry.event.clone()).or_default();
            generation.id.clone_from(&entry.id);
            let event = format!("{:?} of {}", entry.kind, entry.event);
            if *keys.entry(entry.key.clone()).or_insert_with(|| event.clone()) != event {
                self.violation("one idempotency key for two events", &entry, entry.key.clone());
            }
            match entry.kind {
                Kind::Start => {
                    // The part of a generation before the dash is that of the process which made it.
                    let process = entry.event.split('-').next().unwrap_or_default().to_owned();
                    writers.insert(process, entry.writer.clone());
                    generation.starts.push((line, entry));
                }
                Kind::End => generation.ends.push((line, entry)),
            }
        }
        for (name, generation) in &generations {
            let maker = writers.get(name.split('-').next().unwrap_or_default());
            self.judge(name, generation, maker.map(String::as_str));
        }
        self.judge_ids(&generations);
    }

    /// One generation.
    fn judge(&mut self, name: &str, generation: &Generation, maker: Option<&str>) {
        let Generation { starts, ends, .. } = generation;
        if let Some((_, start)) = starts.first() {
            self.add("generations that started");
            if starts.len() > 1 {
                self.violation("started twice", start, format!("{name}: {} starts", starts.len()));
            }
        }
        match (starts.first(), ends.first()) {
            (Some((started, start)), Some((ended, end))) => {
                self.add("started and ended");
                if ended < started {
                    if end.writer != start.writer && start.at < end.at + SLACK {
                        self.add("ends of one process logged just before the start in another");
                    } else if end.writer != start.writer && self.is_unanswered(&start.writer, end.at) {
                        self.add(
                            "ended elsewhere before its start, excused: its process had no answer about the record",
                        );
                    } else {
                        self.violation("ended before it started", start, name.to_owned());
                    }
                }
            }
            (Some((_, start)), None) => {
                if self.is_unrecorded_at_a_kill(&start.writer, start.at) {
                    self.add("without an end, excused: killed before it was recorded, in an outage");
                } else {
                    self.violation("without an end", start, name.to_owned());
                }
            }
            (None, Some((_, end))) => {
                if maker.is_none_or(|maker| self.killed(maker).is_some()) {
                    self.add("without a start, excused: killed before the start hook");
                } else if maker.is_some_and(|maker| self.is_paused_beyond_its_lease(maker, end.at)) {
                    self.add("without a start, excused: paused for longer than its lease before the start hook");
                } else if maker.is_some_and(|maker| self.was_waiting(maker, &end.id)) {
                    self.add("without a start, excused: its process got no answer about the record, and did not tell the start");
                } else {
                    self.violation("ended without a start", end, format!("{name}, made by {maker:?}"));
                }
            }
            (None, None) => {}
        }
        for pair in ends.windows(2) {
            let [(_, first), (_, second)] = pair else { continue };
            if first.key != second.key {
                self.violation("ended again with another key", second, name.to_owned());
            }
            if self.has_lost_its_record(first, What::Killed) {
                self.add("ended again, excused: SIGKILL between hook and record");
            } else if self.has_lost_its_record(first, What::Paused) {
                self.add("ended again, excused: paused for longer than its lease, between hook and record");
            } else if self.is_paused_before_the_answer(first, second) {
                self.add("ended again, excused: paused for longer than its lease, before the answer about its record");
            } else if self.is_paused_in_its_hook(first, second) {
                self.add("ended again, excused: paused for longer than its lease, in a hook");
            } else if self.is_unconfirmed_at_a_stop(first) {
                self.add("ended again, excused: stopped in an outage that began between hook and record");
            } else {
                let text =
                    format!("{name}: {} by {}, {} by {}", first.reason, first.writer, second.reason, second.writer);
                self.violation("ended again", second, text);
            }
        }
    }

    /// The generations of an id follow each other, and every id that a client saw has an end.
    fn judge_ids(&mut self, generations: &HashMap<String, Generation>) {
        let mut ids = HashMap::<&str, Vec<(&str, &Generation)>>::new();
        for (name, generation) in generations {
            ids.entry(&generation.id).or_default().push((name, generation));
        }
        for generations in ids.values_mut() {
            generations.retain(|(_, generation)| !generation.starts.is_empty());
            generations.sort_by_key(|(_, generation)| generation.starts[0].0);
            for pair in generations.windows(2) {
                let [(first, before), (second, after)] = pair else { continue };
                let (started, start) = &after.starts[0];
                // One that never ended is a violation of its own, or excused.
                let Some((ended, end)) = before.ends.first() else { continue };
                if end.ended_at <= start.at + CLOCKS {
                    if ended > started {
                        self.add("ends of one process logged after the next start in another");
                    }
                    continue;
                }
                let text =
                    format!("{second} started {} ms before the end of {first}", (end.ended_at - start.at) / 1000);
                let first_start = &before.starts[0].1;
                let is_excused = |one| self.is_ended_before_its_record(one, first_start, start);
                if is_excused(before) || is_excused(after) {
                    self.add(
                        "two generations at a time, excused: ended in an outage, before the other one was recorded",
                    );
                    continue;
                }
                if self.is_paused_before_its_record(first_start, start)
                    || self.is_paused_before_its_record(start, first_start)
                {
                    self.add(
                        "two generations at a time, excused: made in an outage, and paused before it was recorded",
                    );
                    continue;
                }
                if self.is_stopped_before_the_record(first_start, start)
                    || self.is_stopped_before_the_record(start, first_start)
                {
                    self.add(
                        "two generations at a time, excused: stopped in an outage, before the other one was recorded",
                    );
                    continue;
                }
                self.violation("two generations at a time", start, text);
            }
        }
        let ended: HashSet<_> = self.entries.iter().filter(|e| e.kind == Kind::End).map(|e| e.id.clone()).collect();
        let mut seen = 0;
        for request in self.requests.clone() {
            let Some(made) = request.made else { continue };
            seen += 1;
            if ended.contains(&made) {
                continue;
            }
            if self.is_unrecorded_at_a_kill(&request.process, request.from) {
                self.add("ids that a client saw, without an end, excused: killed before it was recorded, in an outage");
            } else {
                self.broken("an id that a client saw has no end", made, request.until, request.process);
            }
        }
        self.counts.insert("ids that a client saw", seen);
    }

    fn add(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn violation(&mut self, what: &'static str, entry: &Entry, text: String) {
        self.broken(what, entry.id.clone(), entry.at, text);
    }

    fn broken(&mut self, what: &'static str, id: String, at: u64, text: String) {
        self.violations.push(Violation { what, id, at, text });
    }

    fn killed(&self, process: &str) -> Option<&Deed> {
        self.deeds.iter().find(|deed| deed.what == What::Killed && deed.process == process)
    }

    /// If the registry did not answer this process at this time: until when. The process says so itself, but not before a
    /// call has failed.
    fn outage(&self, process: &str, at: u64) -> Option<u64> {
        let blocked = self.deeds.iter().filter(|deed| deed.what == What::Blocked).map(|deed| (deed.from, deed.until));
        let degraded = self.degraded.get(process).into_iter().flatten().copied();
        let mut times: Vec<_> = blocked.chain(degraded).collect();
        times.sort_unstable();
        let mut until = None::<u64>;
        for (from, over) in times {
            if from < until.unwrap_or(at).saturating_add(SLACK) && at < over.saturating_add(SLACK / 2) {
                until = until.max(Some(over));
            }
        }
        until
    }

    /// Whether this one of two generations ended in an outage, before its own record was written: its process did not know the
    /// other one, whose process had not recorded it yet. `one` and `other` are events of the two processes.
    fn is_ended_before_its_record(&self, generation: &Generation, one: &Entry, other: &Entry) -> bool {
        let Some((_, start)) = generation.starts.first() else { return false };
        let is_before = |at: u64| at <= start.at + CLOCKS;
        let noted_at =
            generation.ends.first().filter(|(_, end)| is_before(end.ended_at)).map(|(_, end)| end.started_at);
        // A process that was killed before the end was written leaves its session to others, which end it later.
        let is_end = |request: &&Request| {
            let is_its = request.process == start.writer && request.id == start.id;
            is_its && ["compact", "end"].contains(&request.what) && is_before(request.until)
        };
        let ended_by = || self.requests.iter().rfind(is_end).map(|request| request.from);
        let is_out = |at| [one, other].into_iter().any(|entry| self.outage(&entry.writer, at).is_some());
        noted_at.or_else(ended_by).is_some_and(is_out)
    }

    /// Whether this start happened in an outage, and its process stood still between the request and the record. Another process asks
    /// for the record of an id twice, and then starts a generation of its own.
    fn is_paused_before_its_record(&self, start: &Entry, other: &Entry) -> bool {
        let Some(over) = self.outage(&start.writer, start.at) else { return false };
        // The hook may be called after the pause.
        let is_its = |request: &&Request| request.process == start.writer && request.made.as_ref() == Some(&start.id);
        let made = self.requests.iter().find(is_its).map_or(start.at, |request| request.from.min(start.at));
        let is_pause = |deed: &&Deed| deed.what == What::Paused && deed.process == start.writer;
        let is_before = |deed: &Deed| deed.from < over.saturating_add(SLACK).min(other.at) && deed.until > made;
        start.writer != other.writer && self.deeds.iter().filter(is_pause).any(is_before)
    }

    /// Whether this start happened while its process was stopped, after an outage in which the other process had made the id. A
    /// drain has no time to ask for the record twice.
    fn is_stopped_before_the_record(&self, start: &Entry, other: &Entry) -> bool {
        let is_stop = |deed: &&Deed| deed.what == What::Stopped && deed.process == start.writer;
        let is_meanwhile = |deed: &Deed| deed.from < start.at + SLACK && start.at < deed.until + SLACK;
        start.writer != other.writer
            && self.outage(&other.writer, other.at).is_some()
            && self.deeds.iter().filter(is_stop).any(is_meanwhile)
    }

    /// Whether the process of the second end had recorded the session when an outage was over, and was paused for longer than
    /// its lease before it knew. It does not know either that others have ended the session since.
    fn is_paused_before_the_answer(&self, first: &Entry, second: &Entry) -> bool {
        let is_pause = |deed: &&Deed| {
            deed.what == What::Paused
                && deed.process == second.writer
                && deed.until - deed.from > crash::LEASE.as_micros() as u64
                && deed.from > second.started_at
        };
        first.writer != second.writer
            && self.outage(&second.writer, second.started_at).is_some()
            && self.deeds.iter().filter(is_pause).any(|pause| pause.from < first.at && first.at < pause.until + SLACK)
    }

    /// Whether the process stood still then, or waited for the registry. A record may have been written, and others can end it,
    /// before the process has the answer and calls the start hook.
    fn is_unanswered(&self, process: &str, at: u64) -> bool {
        let is_pause = |deed: &&Deed| deed.what == What::Paused && deed.process == process;
        let mut pauses = self.deeds.iter().filter(is_pause);
        self.outage(process, at).is_some() || pauses.any(|pause| pause.from < at && at < pause.until)
    }

    /// Whether the process of the second end was paused for longer than its lease while it called the hook, and went on.
    fn is_paused_in_its_hook(&self, first: &Entry, second: &Entry) -> bool {
        let is_pause = |deed: &&Deed| {
            let is_long = deed.until - deed.from > crash::LEASE.as_micros() as u64;
            deed.what == What::Paused && deed.process == second.writer && is_long
        };
        let is_meanwhile = |deed: &Deed| {
            (deed.from..deed.until).contains(&first.at) && (deed.from..deed.until + HOOK).contains(&second.at)
        };
        self.deeds.iter().filter(is_pause).any(is_meanwhile)
    }

    /// Whether a process was killed before it could record what it began then, because the registry did not answer.
    fn is_unrecorded_at_a_kill(&self, process: &str, at: u64) -> bool {
        let is_before = |until: u64| self.killed(process).is_some_and(|kill| kill.from < until.saturating_add(SLACK));
        self.outage(process, at).is_some_and(is_before)
    }

    /// Whether this happened to the process before it could record the end that it had delivered.
    fn has_lost_its_record(&self, end: &Entry, what: What) -> bool {
        let by = self.outage(&end.writer, end.at).unwrap_or(end.at).saturating_add(SLACK);
        let is_long = |deed: &Deed| what != What::Paused || deed.until - deed.from > crash::LEASE.as_micros() as u64;
        let is_it = |deed: &&Deed| deed.what == what && deed.process == end.writer && is_long(deed);
        self.deeds.iter().filter(is_it).any(|deed| deed.until > end.at && deed.from < by)
    }

    /// Whether the process was stopped in an outage, and did not learn whether this end or its start was written. A session that
    /// started while the registry was blocked, and ended so, cannot have been written.
    fn is_unconfirmed_at_a_stop(&self, end: &Entry) -> bool {
        let Some(over) = self.outage(&end.writer, end.at) else { return false };
        let is_stop = |deed: &&Deed| deed.what == What::Stopped && deed.process == end.writer;
        let is_never_written = |deed: &Deed| deed.from + CLOCKS <= end.started_at && end.at <= deed.until;
        let mut blocked = self.deeds.iter().filter(|deed| deed.what == What::Blocked);
        self.deeds.iter().filter(is_stop).any(|stop| stop.from < over) && !blocked.any(is_never_written)
    }

    /// Whether the process stood still when others ended what it held.
    fn is_paused_beyond_its_lease(&self, process: &str, at: u64) -> bool {
        let lease = crash::LEASE.as_micros() as u64;
        let is_it =
            |deed: &&Deed| deed.what == What::Paused && deed.process == process && deed.until - deed.from > lease;
        self.deeds.iter().filter(is_it).any(|pause| pause.from < at && at < pause.until + SLACK)
    }

    /// Whether the process noted this id while the registry did not answer, or was stopped then: it does not know whether the
    /// record was written.
    fn was_waiting(&self, process: &str, id: &str) -> bool {
        let is_it =
            |request: &Request| request.process == process && (request.id == id || request.made.as_deref() == Some(id));
        // A process asks again for the record of an id that it does not know; it may be stopped before.
        let is_stopped_soon = |request: &Request| {
            let is_it = |stop: &&Deed| {
                stop.what == What::Stopped && stop.process == process && stop.from < request.until + 3 * SLACK
            };
            let mut stops = self.deeds.iter().filter(is_it);
            stops.any(|stop| [stop.from, stop.until].into_iter().any(|at| self.outage(process, at).is_some()))
        };
        self.requests.iter().any(|request| {
            is_it(request) && (self.outage(process, request.until).is_some() || is_stopped_soon(request))
        })
    }

    /// The table.
    pub(crate) fn report(&self, exits: Exits, settled: Option<usize>, left: &[String]) -> String {
        let mut text = String::new();
        let did = |what| self.deeds.iter().filter(|deed| deed.what == what).count();
        let _ = writeln!(
            text,
            "{} requests, {} answered; {} processes started, {} did not; {} killed, {} paused, {} stopped; the registry was \
             blocked {} times",
            self.requests.len(),
            self.requests.iter().filter(|request| request.outcome == "ok").count(),
            did(What::Started),
            did(What::DidNotStart),
            did(What::Killed),
            did(What::Paused),
            did(What::Stopped),
            did(What::Blocked),
        );
        let mut reasons = BTreeMap::<_, usize>::new();
        for entry in self.entries.iter().filter(|entry| entry.kind == Kind::End) {
            *reasons.entry(entry.reason.as_str()).or_default() += 1;
        }
        let _ = writeln!(
            text,
            "ends: {reasons:?}; the last three: {exits:?}; recovered by {settled:?} processes; left: {left:?}"
        );
        let seconds = |(from, until): &(u64, u64)| until.saturating_sub(*from) as f64 / 1e6;
        let known: Vec<_> = self.degraded.values().flatten().filter(|(_, until)| *until < u64::MAX).collect();
        let total: f64 = known.iter().copied().map(seconds).sum();
        let _ = writeln!(
            text,
            "the processes say that the registry was degraded {} times, {total:.1} s in all",
            known.len()
        );
        for (what, count) in &self.counts {
            let _ = writeln!(text, "{count:7}  {what}");
        }
        let mut violations = BTreeMap::<_, usize>::new();
        self.violations.iter().for_each(|violation| *violations.entry(violation.what).or_default() += 1);
        for (what, count) in violations {
            let _ = writeln!(text, "{count:7}  VIOLATIONS: {what}");
        }
        text
    }

    /// Every violation, with the history of its id.
    pub(crate) fn check(&self, left: &[String], settled: Option<usize>) -> Result<(), String> {
        let mut text = String::new();
        if settled.is_none() {
            text.push_str("VIOLATION: there is always more to recover\n");
        }
        if !left.is_empty() {
            let _ = writeln!(text, "VIOLATION: left in the registry: {left:?}");
        }
        let mut by_id = BTreeMap::<_, Vec<_>>::new();
        self.violations.iter().for_each(|violation| by_id.entry(&violation.id).or_default().push(violation));
        for (id, violations) in by_id {
            let _ = writeln!(text);
            for Violation { what, text: details, .. } in &violations {
                let _ = writeln!(text, "VIOLATION: {what}: {id} {details}");
            }
            self.history(&mut text, violations[0]);
        }
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    fn history(&self, text: &mut String, violation: &Violation) {
        let entries = self.entries.iter().filter(|entry| entry.id == violation.id);
        let mut lines: Vec<_> =
            entries.map(|e| (e.at, format!("hook     {} {:?} {} {}", e.writer, e.kind, e.event, e.reason))).collect();
        let is_of = |request: &&Request| request.id == violation.id || request.made.as_deref() == Some(&violation.id);
        for request in self.requests.iter().filter(is_of) {
            let Request { what, id, made, process, outcome, .. } = request;
            let millis = (request.until - request.from) / 1000;
            lines.push((request.from, format!("request  {process} {what} {id} -> {made:?} {outcome} ({millis} ms)")));
        }
        let first = lines.iter().map(|(at, _)| *at).min().unwrap_or(violation.at);
        let last = lines.iter().map(|(at, _)| *at).max().unwrap_or(violation.at);
        let near =
            |from: u64, until: u64| until.saturating_add(AROUND / 2) > first && from < last.max(violation.at) + AROUND;
        for (process, times) in &self.degraded {
            for (from, until) in times.iter().filter(|(from, until)| near(*from, *until)) {
                let until = if *until == u64::MAX {
                    "until its exit".to_owned()
                } else {
                    format!("{} ms", (until - from) / 1000)
                };
                lines.push((*from, format!("degraded {process} ({until})")));
            }
        }
        for deed in &self.deeds {
            if near(deed.from, deed.until) {
                let Deed { what, process, note, .. } = deed;
                let millis = (deed.until - deed.from) / 1000;
                lines.push((deed.from, format!("schedule {what:?} {process} {note} ({millis} ms)")));
            }
        }
        lines.sort();
        for (at, line) in lines {
            let _ = writeln!(text, "  {:+9.3} s  {line}", (at as f64 - violation.at as f64) / 1e6);
        }
    }
}
