//! Why there is no device that can be used.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where the kernel lists its devices,
pub const CLASS: &str = "/sys/class/infiniband";
/// and where their nodes are.
pub const NODES: &str = "/dev/infiniband";

/// Why libibverbs finds none, and what to do.
pub fn explain() -> String {
    explain_at(Path::new(CLASS), Path::new(NODES))
}

fn names(directory: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort();
    names
}

fn explain_at(class: &Path, nodes: &Path) -> String {
    let devices = names(class, "");
    if devices.is_empty() {
        return format!(
            "the kernel has none ({} is empty or not there); load the adapter's driver (mlx5_ib, bnxt_re, irdma, ...), or make a \
             soft-RoCE device (`rdma link add rxe0 type rxe netdev eth0`)",
            class.display()
        );
    }
    let devices = devices.join(", ");
    let uverbs = names(nodes, "uverbs");
    if uverbs.is_empty() {
        return format!(
            "the kernel has {devices}, and there is no {}/uverbs*; `modprobe ib_uverbs`, or give the container that directory",
            nodes.display()
        );
    }
    match uverbs.iter().map(|name| nodes.join(name)).find(|node| !may_use(node)) {
        Some(node) => format!(
            "the kernel has {devices}, and this user may not read and write {}; change its mode (rdma-core's udev rules make it 0666)",
            node.display()
        ),
        None => format!(
            "the kernel has {devices}, and libibverbs has no driver for it; install ibverbs-providers, or what the adapter's vendor gives"
        ),
    }
}

fn may_use(node: &Path) -> bool {
    let Ok(node) = CString::new(node.as_os_str().as_bytes()) else { return false };
    // SAFETY: a string that ends.
    unsafe { libc::access(node.as_ptr(), libc::R_OK | libc::W_OK) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_piece_is_named_with_what_to_do() {
        let root = std::env::temp_dir().join(format!("catena-verbs-absence-{}", std::process::id()));
        let (class, nodes) = (root.join("class"), root.join("nodes"));
        let explain = || explain_at(&class, &nodes);
        assert!(explain().contains("load the adapter's driver"), "{}", explain());

        std::fs::create_dir_all(class.join("mlx5_0")).unwrap();
        assert!(explain().contains("mlx5_0") && explain().contains("modprobe ib_uverbs"), "{}", explain());

        // A broken link cannot be opened by anyone, root included.
        std::fs::create_dir_all(&nodes).unwrap();
        std::os::unix::fs::symlink(root.join("nothing"), nodes.join("uverbs0")).unwrap();
        assert!(explain().contains("nodes/uverbs0; change its mode"), "{}", explain());

        std::fs::remove_file(nodes.join("uverbs0")).unwrap();
        std::fs::write(nodes.join("uverbs0"), "").unwrap();
        assert!(explain().contains("install ibverbs-providers"), "{}", explain());
        std::fs::remove_dir_all(root).unwrap();
    }
}
