//! What only the kernel can give: BTF and bpffs. Nothing here can be installed.

use std::path::Path;

/// One line for each thing that the kernel tests and the lab need and this kernel lacks, with the next step.
pub(crate) fn missing() -> Vec<String> {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    lacks(Path::new("/sys/kernel/btf/vmlinux").exists(), &filesystems)
}

fn lacks(has_btf: bool, filesystems: &str) -> Vec<String> {
    let mut lacks = Vec::new();
    if !has_btf {
        lacks.push(
            "this kernel has no BTF: no `/sys/kernel/btf/vmlinux`; boot one with CONFIG_DEBUG_INFO_BTF, or use `cargo xtask vm-test`"
                .to_owned(),
        );
    }
    if !filesystems.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        lacks.push(
            "this kernel has no bpffs: no `bpf` in `/proc/filesystems`; boot one with CONFIG_BPF_SYSCALL, or use `cargo xtask vm-test`"
                .to_owned(),
        );
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lack_is_one_line_with_a_next_step() {
        assert_eq!(lacks(true, "nodev\tproc\nnodev\tbpf\n\text4\n"), Vec::<String>::new());
        let both = lacks(false, "nodev\tproc\nnodev\tnotbpf\n");
        assert_eq!(both.len(), 2);
        assert!(
            both.iter().all(|line| line.contains("; boot one with ") && !line.contains('\n')),
            "{both:?}"
        );
    }
}
