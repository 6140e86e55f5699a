//! The parser of `iptables-save`'s text over random input; every other decoder has such a test beside its own.

use fixtures::Random;
use probe_model::netfilter::Ruleset;

#[test]
fn no_rules_panic() {
    let mut random = Random::new(5);
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
