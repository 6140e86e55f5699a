//! Every metric of the agent's. What is not here is on no page; a test compares this list with a page and with
//! `docs/metrics.md`, the dashboard and the alerts with this list.

use super::exposition::{Family, Kind};

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal [$($label:literal)*] $help:literal)*) => {
        $(#[doc = $help] pub(super) const $constant: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*

        /// All of them, in the order of a page.
        pub const ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    BUILD Info "plsprobe_build_info" ["version" "cilium_version" "verdicts_from"] "Versions of plsprobe and Cilium, and where Cilium's verdicts are read."
    FLOWS Counter "plsprobe_flows_total" ["service" "source" "verdict"] "Flows that were judged."
    CAUSES Counter "plsprobe_causes_total" ["service" "cause" "verdict"] "Flows by the cause of their verdict."
    REFUSED Counter "plsprobe_flows_refused_total" ["service"] "Flows that reached somebody who refused them, by a reset or an ICMP error."
    RETRANSMISSIONS Counter "plsprobe_syn_retransmissions_total" ["service"] "SYNs that came again."
    DISAGREEMENTS Counter "plsprobe_disagreements_total" ["service"] "Contradictions between what was observed, the maps and the policy objects."
    ANSWERS Histogram "plsprobe_answer_latency_seconds" ["service"] "Time from a flow's first packet to its first answer, on this node."
    DROPS Counter "plsprobe_cilium_drops_total" ["reason"] "Flows that Cilium dropped, by its reason."
    OTHERS Counter "plsprobe_flows_of_other_services_total" [] "Flows counted as those of service `other`, as there are too many services."
    LAGGED Counter "plsprobe_flows_uncounted_total" [] "Flows that were judged and are missing in the counters above, as they came too fast to count."
    JUDGED Counter "plsprobe_flows_judged_total" [] "Flows that the engine judged."
    UNJUDGED Counter "plsprobe_flows_unjudged_total" [] "Flows that were seen and not judged one by one, as there were too many."
    MADE Counter "plsprobe_records_made_total" [] "Records that the programs in the kernel made."
    READ Counter "plsprobe_records_read_total" [] "Records that were read."
    LOST Counter "plsprobe_records_lost_total" [] "Records that found no room."
    MALFORMED Counter "plsprobe_records_malformed_total" [] "Records that could not be read."
    WANTED Gauge "plsprobe_hooks_wanted" [] "Hooks that are wanted."
    MISSING_HOOKS Gauge "plsprobe_hooks_missing" [] "Hooks that are wanted and not attached."
    ATTACHED Gauge "plsprobe_hooks_attached" ["means"] "Hooks that are attached, by which means."
    READY Gauge "plsprobe_ready" [] "Whether /readyz says so: the agent serves, every hook is attached, and nothing keeps it from seeing."
    TROUBLE Gauge "plsprobe_trouble" [] "Whether something keeps the agent from seeing anything, such as a Cilium that is not there."
    SAID Gauge "plsprobe_engine_said_timestamp_seconds" [] "When the engine last said how it is; it does once a second."
    SERVING Gauge "plsprobe_serving_since_timestamp_seconds" [] "When the agent began to serve."
    WORLD_AGE Gauge "plsprobe_world_age_seconds" [] "Age of the maps that flows are judged by."
    FACTS Gauge "plsprobe_facts_missing" [] "Facts that could not be had; /readyz names them."
    TARGETS Gauge "plsprobe_targets" [] "Targets and Services that are watched."
    SESSIONS Gauge "plsprobe_sessions" [] "Trace sessions that are open."
    OPENED Counter "plsprobe_sessions_opened_total" [] "Trace sessions that were opened."
    TURNED_AWAY Counter "plsprobe_sessions_refused_total" [] "Trace sessions that were refused for a limit."
    HISTORY_BYTES Gauge "plsprobe_history_bytes" [] "Memory of the history."
    HISTORY_FLOWS Gauge "plsprobe_history_flows" [] "Flows of the history."
    CONNECTIONS_REFUSED Counter "plsprobe_metrics_connections_refused_total" [] "Connections to the metrics' port that were closed at once, as there were too many."
    OTLP_EXPORTED Counter "plsprobe_otlp_spans_exported_total" [] "Spans that an OTLP collector took."
    OTLP_REJECTED Counter "plsprobe_otlp_spans_rejected_total" [] "Spans of accepted batches that the collector refused all the same."
    OTLP_LOST Counter "plsprobe_otlp_flows_lost_total" ["reason"] "Flows that were not exported: `behind` (judged faster than exported), `refused` (by the collector), `unreachable` (given up)."
    OTLP_RETRIES Counter "plsprobe_otlp_retries_total" [] "Times a batch was sent again."
    PROCESS_CPU Counter "process_cpu_seconds_total" [] "CPU time of the process, in user space and in the kernel."
    PROCESS_START Gauge "process_start_time_seconds" [] "When the process was started."
    PROCESS_RESIDENT Gauge "process_resident_memory_bytes" [] "Memory of the process that is in RAM."
    PROCESS_RESIDENT_MAX Gauge "process_resident_memory_max_bytes" [] "The most memory of the process that ever was in RAM."
    PROCESS_THREADS Gauge "process_threads" [] "Threads of the process."
    PROCESS_FDS Gauge "process_open_fds" [] "Open file descriptors."
    PROCESS_FDS_MAX Gauge "process_max_fds" [] "Open file descriptors at most."
}
