//! Labs of the tests that trace on a live node; where nothing can be traced, a test is skipped, and that is said.

use probe_lab::{Lab, LabOptions, Shape};

/// What to bring up for a test, in an instance that no other test has; `None` if the test is skipped.
pub(crate) fn options(test: &str, shape: Shape, scenario: &str) -> Option<LabOptions> {
    let built = probe_user::attach::is_built_in();
    let why =
        probe_lab::standin::unavailable().or((!built).then(|| "built without its eBPF object".to_owned()));
    if let Some(why) = why {
        fixtures::skip!("{why}");
        return None;
    }
    let instance = format!("t{}-{test}", std::process::id());
    Some(LabOptions { instance, shape, scenario: scenario.to_owned() })
}

/// The same, brought up.
#[track_caller]
pub(crate) fn lab(test: &str, shape: Shape, scenario: &str) -> Option<Lab> {
    let options = options(test, shape, scenario)?;
    Some(Lab::up(&options).unwrap_or_else(|error| panic!("{test}: {error:#}")))
}
