//! Perf samples of `cilium_events`.

use probe_model::cilium::events::{Notification, Sample};

/// One perf sample: decodes it, and asks of it what the trace asks.
pub fn events(data: &[u8]) {
    let Ok(sample) = Sample::decode(data) else { return };
    assert!(sample.packet.len() <= data.len());
    match sample.notification {
        Notification::Drop(drop) => drop_text(&drop.reason.to_string()),
        Notification::PolicyVerdict(verdict) => {
            // A verdict drops or hands to a proxy, never both.
            assert!(verdict.drop_reason().is_none() || verdict.proxy_port().is_none());
        }
        Notification::Trace(trace) => drop_text(trace.point.name().unwrap_or_default()),
        Notification::Other { .. } => {}
    }
}

fn drop_text(text: &str) {
    assert!(text.len() < 200, "{text}");
}
