//! Whose word it is.

use probe_model::path::HookPoint;

use super::super::testing::{part, stop, tuple};
use super::*;

const CAME: &str = "10.224.0.8:40000 > 10.224.0.7:80";
const BETWEEN: &str = "10.224.0.4:61000 > 10.0.1.143:80";
const DROPPED: Fate = Fate::Dropped { reply: false };
const ANSWER_DROPPED: Fate = Fate::Dropped { reply: true };
use FlowVerdict::{Allowed, Dropped, Inconclusive};

/// What two nodes' words come to: verdict, whose, finding. `snat` says whether the first puts its own address in.
#[track_caller]
fn check(
    snat: bool,
    first: (FlowVerdict, Fate, bool),
    second: (FlowVerdict, Fate, bool),
    expected: (FlowVerdict, usize, Option<Finding>),
) {
    let between = if snat { tuple(BETWEEN) } else { tuple("10.224.0.8:40000 > 10.0.1.143:80") };
    let told = |mut own: Part, (verdict, fate, is_answered): (FlowVerdict, Fate, bool)| {
        (own.verdict, own.fate, own.answered_ns) = (verdict, fate, is_answered.then_some(9));
        own
    };
    let one = told(part(0, 1, tuple(CAME), between, true), first);
    let other = told(part(1, 2, between, between, false), second);
    let Judged { verdict, by, finding } = judge(&[&one, &other]);
    assert_eq!((verdict, by, finding), expected);
}

#[test]
fn who_saw_how_it_ended() {
    let fine = (Allowed, Fate::Other, true);
    let silent = (Inconclusive, Fate::Other, false);
    check(true, fine, fine, (Allowed, 1, None));
    check(false, silent, (Dropped, DROPPED, false), (Dropped, 1, None));
    // The maps of the first know nothing of the second's policies.
    check(false, (Allowed, Fate::Other, false), (Dropped, Fate::Other, false), (Dropped, 1, None));
    // Where the first put its own address in, the second's policy judged that.
    let hidden = Some(Finding::Hidden { by: 0 });
    check(true, silent, (Dropped, DROPPED, false), (Dropped, 1, hidden));
    check(true, (Allowed, Fate::Other, false), (Dropped, Fate::Other, false), (Dropped, 1, hidden));
    check(true, (Dropped, ANSWER_DROPPED, true), fine, (Dropped, 0, None));
    check(true, silent, silent, (Inconclusive, 1, None));
    // The second lost records, the first saw the answer come back.
    check(true, fine, silent, (Allowed, 0, None));
    check(true, (Inconclusive, Fate::AnswerLost, true), fine, (Inconclusive, 0, None));
    check(true, (Dropped, Fate::Other, true), fine, (Allowed, 1, Some(Finding::WentOn { at: 0 })));
}

#[test]
fn an_answer_that_must_come_back_the_same_way() {
    let fine = (Allowed, Fate::Other, true);
    let silent = (Inconclusive, Fate::Other, false);
    check(true, silent, fine, (Inconclusive, 0, Some(Finding::AnswerMissing { through: 0 })));
    // Answered past the first node, as DSR does.
    check(false, silent, fine, (Allowed, 1, None));
    // A cut connection was answered before.
    check(false, fine, (Dropped, DROPPED, true), (Dropped, 1, None));
}

#[test]
fn one_node_s_word_is_its_own() {
    let mut one = part(0, 1, tuple(CAME), tuple(BETWEEN), true);
    one.verdict = Inconclusive;
    assert_eq!(judge(&[&one]), Judged { verdict: Inconclusive, by: 0, finding: None });
    // What it did there says whether it can have come, or gone on.
    one.fate = DROPPED;
    assert!(!one.may_go_on() && one.may_have_come());
    one.fate = ANSWER_DROPPED;
    assert!(one.may_go_on());
    one.replies = vec![stop(3, HookPoint::PodOut, tuple(CAME))];
    assert!(!one.may_go_on(), "a pod of the node answered");
    one.hops[0].point = HookPoint::PodOut;
    assert!(!one.may_have_come());
}
