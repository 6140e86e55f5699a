//! libpcap's compiler of filter expressions, and nothing else of it.
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null;

use probe_common::CAPTURE_MAX;

/// One instruction of classic BPF, `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Classic {
    pub(crate) code: u16,
    /// Instructions to skip if a condition holds.
    pub(crate) jt: u8,
    /// And if it does not.
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// `struct bpf_program`.
#[repr(C)]
struct Program {
    len: c_uint,
    instructions: *mut Classic,
}

/// `pcap_t`.
#[repr(C)]
struct Handle(c_void);

/// Link layer of packets that begin with their IP header.
const DLT_RAW: c_int = 12;
/// How much of a packet there is to see.
const SNAPLEN: c_int = 256;
const _: () = assert!(SNAPLEN.cast_unsigned() as usize == CAPTURE_MAX);
const PCAP_NETMASK_UNKNOWN: u32 = u32::MAX;

unsafe extern "C" {
    fn pcap_open_dead(linktype: c_int, snaplen: c_int) -> *mut Handle;
    fn pcap_compile(
        handle: *mut Handle,
        program: *mut Program,
        expression: *const c_char,
        optimize: c_int,
        netmask: u32,
    ) -> c_int;
    fn pcap_geterr(handle: *mut Handle) -> *mut c_char;
    fn pcap_freecode(program: *mut Program);
    fn pcap_close(handle: *mut Handle);
}

/// Compiles an expression (pcap-filter(7)) for packets that begin with their IP header.
///
/// # Errors
///
/// What libpcap says of one that it does not understand.
pub(crate) fn compile(expression: &str) -> Result<Vec<Classic>, String> {
    let text = CString::new(expression).map_err(|_| "a NUL character".to_owned())?;
    let mut program = Program { len: 0, instructions: std::ptr::null_mut() };
    // SAFETY: the handle is checked and closed once; the text outlives the call; the program is read only after
    // libpcap has filled it, and freed once; the message is copied before the handle goes.
    unsafe {
        let handle = pcap_open_dead(DLT_RAW, SNAPLEN);
        if handle.is_null() {
            return Err("libpcap has no memory".to_owned());
        }
        let status = pcap_compile(handle, &raw mut program, text.as_ptr(), 1, PCAP_NETMASK_UNKNOWN);
        let result = if status == 0 {
            let all = std::slice::from_raw_parts(program.instructions, program.len as usize).to_vec();
            pcap_freecode(&raw mut program);
            Ok(all)
        } else {
            Err(CStr::from_ptr(pcap_geterr(handle)).to_string_lossy().into_owned())
        };
        pcap_close(handle);
        result
    }
}

/// What libpcap would capture by, which needs D-Bus and more: never called, since no interface is ever opened.
/// That they are here keeps the linker from looking for them in libpcap.
macro_rules! without {
    ($($name:ident)+) => {
        $(
            // SAFETY: the only definition of the name that is linked, see above.
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> *const c_void {
                null()
            }
        )+
    };
}

without! {
    bt_create bt_findalldevs bt_monitor_create bt_monitor_findalldevs dbus_create dbus_findalldevs
    netfilter_create netfilter_findalldevs pcap_create_interface pcap_platform_finddevs
    rdmasniff_create rdmasniff_findalldevs usb_create usb_findalldevs
}

/// Runs a program as libpcap does: not 0 if it matches.
#[cfg(test)]
pub(crate) fn run(program: &[Classic], packet: &[u8], packet_len: u32) -> u32 {
    unsafe extern "C" {
        fn bpf_filter(program: *const Classic, packet: *const u8, len: c_uint, captured: c_uint) -> c_uint;
    }
    // SAFETY: the tests give only programs that end in a return; the packet is as long as is said.
    unsafe { bpf_filter(program.as_ptr(), packet.as_ptr(), packet_len, packet.len() as c_uint) }
}
