//! What another node's clock says, in ours, and how wrong that may be.

/// Nanoseconds by which two clocks may drift apart in so many: 200 ppm, twice what the worst quartz does. (The kernel
/// steers `CLOCK_MONOTONIC` by less, unless the calendar is far off.)
const DRIFT: u64 = 5_000;

/// The other clock, read once: between our two times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When we asked, in nanoseconds of our clock.
    pub asked_ns: u64,
    /// When we had the answer.
    pub answered_ns: u64,
    /// What the other said.
    pub theirs_ns: u64,
}

impl Reading {
    /// How wrong it may be at that time: the answer may have taken all of the round trip, or none of it.
    fn error_ns(&self) -> u64 {
        self.answered_ns.saturating_sub(self.asked_ns).div_ceil(2)
    }

    /// How wrong it may be at another time of theirs.
    fn error_at(&self, theirs_ns: u64) -> u64 {
        self.error_ns().saturating_add(theirs_ns.abs_diff(self.theirs_ns).div_ceil(DRIFT))
    }
}

/// A time in our clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Most likely.
    pub ns: i128,
    /// How wrong that may be, either way.
    pub error_ns: u64,
}

/// Another clock: one reading of each time that it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    rounds: Vec<Reading>,
}

impl Clock {
    /// Takes readings that were made one after another: the one with the shortest round trip says the most.
    pub fn read(&mut self, readings: &[Reading]) {
        self.rounds.extend(readings.iter().min_by_key(|reading| reading.error_ns()));
    }

    /// A time of theirs in ours, by the reading that says the most of that time. Without any, nothing is known.
    pub fn ours(&self, theirs_ns: u64) -> Moment {
        let Some(best) = self.rounds.iter().min_by_key(|round| round.error_at(theirs_ns)) else {
            return Moment { ns: theirs_ns.into(), error_ns: u64::MAX };
        };
        let middle =
            i128::from(best.asked_ns) + i128::from(best.answered_ns.saturating_sub(best.asked_ns) / 2);
        let ns = middle + i128::from(theirs_ns) - i128::from(best.theirs_ns);
        Moment { ns, error_ns: best.error_at(theirs_ns) }
    }

    /// How far theirs is ahead of ours and how wrong that may be, at the best reading; `None` without one.
    pub fn offset(&self) -> Option<Moment> {
        let best = self.rounds.iter().min_by_key(|round| round.error_ns())?;
        let ours = self.ours(best.theirs_ns);
        Some(Moment { ns: i128::from(best.theirs_ns) - ours.ns, ..ours })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading of a clock that is `ahead`, with so long a way there and back.
    fn reading(asked_ns: u64, there: u64, back: u64, ahead: i64) -> Reading {
        let theirs_ns = (asked_ns + there).strict_add_signed(ahead);
        Reading { asked_ns, answered_ns: asked_ns + there + back, theirs_ns }
    }

    #[test]
    fn the_shortest_round_trip_counts() {
        let mut clock = Clock::default();
        assert_eq!(clock.offset(), None);
        assert_eq!(clock.ours(7), Moment { ns: 7, error_ns: u64::MAX });
        clock.read(&[
            reading(1_000, 500, 100, 9_000),
            reading(5_000, 50, 50, 9_000),
            reading(8_000, 1, 900, 9_000),
        ]);
        assert_eq!(clock.offset(), Some(Moment { ns: 9_000, error_ns: 50 }));
        assert_eq!(clock.ours(14_050), Moment { ns: 5_050, error_ns: 50 });
        // 200 µs in a second.
        assert_eq!(clock.ours(1_000_014_050), Moment { ns: 1_000_005_050, error_ns: 200_050 });
    }

    #[test]
    fn a_time_between_two_readings_goes_by_the_better() {
        let mut clock = Clock::default();
        clock.read(&[reading(0, 100, 100, 0)]);
        clock.read(&[reading(10_000_000_000, 100, 100, 2_000_000)]);
        assert_eq!(clock.ours(1_000_000_100), Moment { ns: 1_000_000_100, error_ns: 200_100 });
        assert_eq!(clock.ours(9_002_000_100), Moment { ns: 9_000_000_100, error_ns: 200_100 });
        // A slow answer is worth less than a good one of another time.
        clock.read(&[reading(9_000_000_000, 900_000_000, 0, 2_000_000)]);
        assert_eq!(clock.ours(9_002_000_100).error_ns, 200_100);
    }

    /// However the way is divided and the clocks drift, the truth is within the error that is said.
    #[test]
    fn the_truth_is_within_the_error() {
        let mut random = fastrand::Rng::with_seed(6);
        for _ in 0..10_000 {
            let ahead = random.i64(-5_000_000_000..5_000_000_000);
            // One part in so many, either way.
            let drift = random.i64(5_002..100_000) * if random.bool() { 1 } else { -1 };
            let theirs = |ours: u64| ours.strict_add_signed(ahead + ours.cast_signed() / drift);
            let mut clock = Clock::default();
            for round in 1..random.u64(2..5) {
                let readings: Vec<_> = (0..random.u64(1..9))
                    .map(|ask| {
                        let (there, back) = (random.u64(0..9_000_000), random.u64(0..9_000_000));
                        let asked_ns = round * 10_000_000_000 + ask * 20_000_000;
                        let theirs_ns = theirs(asked_ns + there);
                        Reading { asked_ns, answered_ns: asked_ns + there + back, theirs_ns }
                    })
                    .collect();
                clock.read(&readings);
            }
            let ours = random.u64(10_000_000_000..60_000_000_000);
            let said = clock.ours(theirs(ours));
            let off = (said.ns - i128::from(ours)).unsigned_abs();
            assert!(off <= u128::from(said.error_ns) + 1, "{ours} {said:?}");
        }
    }
}
