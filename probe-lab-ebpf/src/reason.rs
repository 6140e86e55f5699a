//! Drop reasons, as the datapath returns them: negative.
//!
//! Source: `bpf/lib/common.h` @1.14 (`DROP_…`).

pub const INVALID_SIP: i32 = -132;
pub const POLICY: i32 = -133;
pub const INVALID: i32 = -134;
pub const CT_INVALID_HDR: i32 = -135;
pub const CT_UNKNOWN_PROTO: i32 = -137;
pub const UNKNOWN_L3: i32 = -139;
pub const MISSED_TAIL_CALL: i32 = -140;
pub const WRITE_ERROR: i32 = -141;
pub const UNKNOWN_ICMP_CODE: i32 = -143;
pub const UNROUTABLE: i32 = -151;
pub const CSUM_L3: i32 = -153;
pub const CSUM_L4: i32 = -154;
pub const CT_CREATE_FAILED: i32 = -155;
pub const FRAG_NOSUPPORT: i32 = -157;
pub const NO_SERVICE: i32 = -158;
pub const NAT_NO_MAPPING: i32 = -167;
pub const NAT_UNSUPP_PROTO: i32 = -168;
pub const IS_CLUSTER_IP: i32 = -174;
pub const NOT_IN_SRC_RANGE: i32 = -177;
pub const POLICY_DENY: i32 = -181;
pub const POLICY_AUTH_REQUIRED: i32 = -189;
pub const TTL_EXCEEDED: i32 = -196;
