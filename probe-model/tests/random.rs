//! The parser of `iptables-save`'s text over random input; every other decoder has such a test beside its own.

use probe_model::netfilter::Ruleset;

/// xorshift64*: the same numbers in every run, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

#[test]
fn no_rules_panic() {
    let mut random = Random(5);
    for _ in 0..20_000 {
        let words = [
            "*nat",
            "COMMIT",
            ":A ACCEPT",
            "-A",
            "A",
            "-j",
            "DNAT",
            "--to-destination",
            "1.2.3.4:5",
            "!",
            "-d",
            "\n",
            " ",
            "[",
            "\"",
        ];
        let text: Vec<_> = (0..random.below(30)).map(|_| random.one(&words)).collect();
        let _ = Ruleset::parse(&text.join(" "));
    }
}
