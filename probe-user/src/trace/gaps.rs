//! Times in which nothing could be seen at a place.
use std::time::Duration;

/// Nothing was seen at a place meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where: `eth0 ingress`.
    pub place: String,
    /// Why.
    pub why: String,
    /// When all was last known to be well there, in nanoseconds of `CLOCK_MONOTONIC`.
    pub from_ns: u64,
    /// When it was well again; `None` if it never was.
    pub until_ns: Option<u64>,
}

impl Gap {
    /// How long it was, at most; of one that is open until `now_ns`.
    pub fn length(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(self.until_ns.unwrap_or(now_ns).saturating_sub(self.from_ns))
    }
}

/// Gaps that are kept; of more, the oldest that have ended are forgotten. An agent has some with each pod.
const KEPT_MAX: usize = 512;

/// All gaps of a trace, but for old ones where there are very many.
#[derive(Clone, Debug)]
pub(super) struct Gaps {
    all: Vec<Gap>,
    /// When every place was last looked at.
    looked_ns: u64,
}

impl Gaps {
    /// All is well at `now_ns`.
    pub(super) fn new(now_ns: u64) -> Self {
        Self { all: Vec::new(), looked_ns: now_ns }
    }

    /// Something is wrong at `place`, since the last look at the earliest; nothing new if it was wrong already.
    pub(super) fn open(&mut self, place: &str, why: &str) {
        if !self.is_open(place) {
            if self.all.len() >= KEPT_MAX
                && let Some(ended) = self.all.iter().position(|gap| gap.until_ns.is_some())
            {
                self.all.remove(ended);
            }
            let (place, why) = (place.to_owned(), why.to_owned());
            self.all.push(Gap { place, why, from_ns: self.looked_ns, until_ns: None });
        }
    }

    /// All is well at `place` from `now_ns` on. Returns the gap that ends with it.
    pub(super) fn close(&mut self, place: &str, now_ns: u64) -> Option<&Gap> {
        let gap = self.all.iter_mut().find(|gap| gap.until_ns.is_none() && gap.place == place)?;
        gap.until_ns = Some(now_ns);
        Some(gap)
    }

    /// Closes those at places that are not looked at any more.
    pub(super) fn keep_open(&mut self, is_wanted: impl Fn(&str) -> bool, now_ns: u64) {
        for gap in self.all.iter_mut().filter(|gap| gap.until_ns.is_none() && !is_wanted(&gap.place)) {
            gap.until_ns = Some(now_ns);
        }
    }

    /// Every place has been looked at.
    pub(super) fn looked(&mut self, now_ns: u64) {
        self.looked_ns = now_ns;
    }

    fn is_open(&self, place: &str) -> bool {
        self.all.iter().any(|gap| gap.until_ns.is_none() && gap.place == place)
    }

    /// Those that a packet between these times may have fallen into.
    pub(super) fn between(&self, from_ns: u64, until_ns: u64) -> impl Iterator<Item = &Gap> {
        self.all.iter().filter(move |gap| {
            gap.from_ns <= until_ns && gap.until_ns.is_none_or(|gap_until_ns| from_ns <= gap_until_ns)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_gaps_the_last_are_kept_and_all_that_are_open() {
        let mut gaps = Gaps::new(0);
        gaps.open("eth0 ingress", "gone");
        for at in 0..2 * KEPT_MAX as u64 {
            gaps.looked(at);
            gaps.open("lxc1 ingress", "gone");
            gaps.close("lxc1 ingress", at);
        }
        assert_eq!(gaps.all.len(), KEPT_MAX);
        assert!(gaps.is_open("eth0 ingress"));
        assert_eq!(gaps.all.last().unwrap().from_ns, 2 * KEPT_MAX as u64 - 1);
    }

    #[test]
    fn a_gap_is_from_the_last_look_until_all_is_well() {
        let mut gaps = Gaps::new(100);
        gaps.looked(200);
        gaps.open("eth0 ingress", "gone");
        gaps.looked(300);
        gaps.open("eth0 ingress", "still gone");
        assert_eq!(gaps.close("eth0 egress", 400), None);
        let gap = gaps.close("eth0 ingress", 450).unwrap();
        assert_eq!((gap.from_ns, gap.until_ns, gap.why.as_str()), (200, Some(450), "gone"));
        assert_eq!(gap.length(900), Duration::from_nanos(250));
        let fell = |gaps: &Gaps, from, until| gaps.between(from, until).count();
        assert_eq!(
            [(0, 199), (0, 200), (300, 310), (450, 460), (451, 460)].map(|(a, b)| fell(&gaps, a, b)),
            [0, 1, 1, 1, 0]
        );
        gaps.open("lxc1 egress", "gone");
        assert_eq!(fell(&gaps, 900, 901), 1, "an open gap has no end");
        assert_eq!(gaps.all[1].length(350), Duration::from_nanos(50));
        gaps.keep_open(|place| place.starts_with("eth0"), 500);
        assert_eq!(gaps.all[1].until_ns, Some(500));
    }
}
