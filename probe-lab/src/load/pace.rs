//! A rate that is kept on average, and never made up for in one burst.
use std::time::{Duration, Instant};

/// What was missed longer ago than this is not made up for; of a rate that is slower than that, one is.
const MEMORY: Duration = Duration::from_millis(20);

/// Says how many may be sent now.
#[derive(Debug)]
pub(super) struct Pace {
    /// Per second; `None` for no limit.
    rate: Option<u32>,
    since: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<u32>) -> Self {
        Self { rate, since: Instant::now() }
    }

    /// How many may be sent, `most` at a time. Sleeps a little instead of saying zero.
    pub(super) fn due(&mut self, most: u32) -> u32 {
        let Some(rate) = self.rate else { return most };
        let now = Instant::now();
        let memory = MEMORY.max(Duration::from_secs(1) / rate.max(1));
        self.since = self.since.max(now.checked_sub(memory).unwrap_or(self.since));
        let due = ((now - self.since).as_nanos() * u128::from(rate) / 1_000_000_000) as u32;
        if due == 0 {
            let next = if rate == 0 { MEMORY } else { Duration::from_secs(1) / rate };
            std::thread::sleep(next.min(Duration::from_millis(10)));
            return 0;
        }
        let due = due.min(most);
        self.since += Duration::from_secs(1) * due / rate;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_rate_is_kept_too() {
        let mut pace = Pace::new(Some(20));
        let began = Instant::now();
        while pace.due(1) == 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "20 a second are none");
        }
        assert!(began.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn no_more_than_the_rate_and_no_burst_after_a_pause() {
        assert_eq!(Pace::new(None).due(7), 7);
        let mut pace = Pace::new(Some(1_000_000));
        std::thread::sleep(Duration::from_millis(50));
        let began = Instant::now();
        let mut sent = 0;
        while began.elapsed() < Duration::from_millis(30) {
            sent += u64::from(pace.due(64));
        }
        let allowed = (began.elapsed() + MEMORY).as_micros() as u64;
        assert!(sent <= allowed, "{sent} of {allowed}");
    }
}
