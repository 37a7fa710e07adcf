//! The clock of the server, by its last answer.

use std::time::{Duration, Instant};

/// One part in so many is how fast two clocks may drift apart. The estimate is kept that much behind.
const DRIFT: u32 = 1000;

/// A lower bound of the server's clock: unless that is set back, it is never before this estimate.
///
/// The server read its clock before its answer was received. So from then on it is at least the time in the answer, plus what
/// has passed since. An answer that was received late makes the bound lower. A call with such a deadline may be refused
/// although it came in time, and the refusal has a new time.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerClock {
    /// In milliseconds since 1970.
    time: u64,
    received: Instant,
}

impl ServerClock {
    pub(super) const fn new(time: u64, received: Instant) -> Self {
        Self { time, received }
    }

    /// What the server's clock is not before at this moment. `moment` must not be before the answer was received.
    pub(super) fn at_least(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.received);
        let certain: Duration = since - since / DRIFT;
        self.time.saturating_add(certain.as_millis().try_into().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The server's clock differs from this one by any offset. The answer takes between nothing and a second on its way
    /// back, the call the same on its way there.
    #[test]
    fn a_call_is_refused_once_it_was_given_up_and_accepted_if_both_ways_fit_into_its_limit() {
        let (limit, start) = (200 * MS, Instant::now());
        for offset in [0, 1, 3_600_000, 1_700_000_000_000] {
            // In ms, cut off as by the server, which is not in step with our milliseconds.
            let server = |at: Instant| offset + ((at - start).as_micros() as u64 + 700) / 1000;
            for back in [0, 1, 2, 50, 150, 199, 250, 1000] {
                let read = start + 5 * MS;
                let clock = ServerClock::new(server(read), read + back * MS);
                for later in [0, 1, 500, 2500] {
                    let sent = read + back * MS + later * MS;
                    let deadline = clock.at_least(sent + limit);
                    for there in [0, 1, 2, 50, 100, 150, 197, 198, 199, 200, 201, 250, 1000] {
                        let accepted = server(sent + there * MS) < deadline;
                        if there >= 200 {
                            assert!(!accepted, "{back} {later} {there}: carried out after it was given up");
                        } else if there + back + later / DRIFT + 3 < 200 {
                            assert!(accepted, "{back} {later} {there}: refused in time");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_drift_of_a_thousandth_makes_no_call_late() {
        let (start, hours) = (Instant::now(), Duration::from_secs(6 * 3600));
        let deadline = ServerClock::new(0, start).at_least(start + hours);
        // The server's clock is slow: it counts this much of the same time.
        let slow = hours - hours / 1000;
        assert!(u128::from(deadline) <= slow.as_millis());
    }

    #[test]
    fn a_time_that_makes_no_sense_does_not_overflow() {
        let now = Instant::now();
        assert_eq!(ServerClock::new(u64::MAX, now).at_least(now + MS * 2), u64::MAX);
        assert_eq!(ServerClock::new(7, now + MS).at_least(now), 7);
    }
}
