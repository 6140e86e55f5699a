//! The slow policy lookup that probe-model's tests have, for the fuzzer to argue with.

#[path = "../../../probe-model/tests/naive/generate.rs"]
pub(crate) mod generate;
#[path = "../../../probe-model/tests/naive/lookup.rs"]
pub(crate) mod lookup;
#[path = "../../../probe-model/tests/naive/subject.rs"]
#[expect(dead_code, reason = "`is_hit` is for the tests that count")]
pub(crate) mod subject;
#[path = "../../../probe-model/tests/naive/tables.rs"]
pub(crate) mod tables;
