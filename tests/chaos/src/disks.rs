//! Disks that can be filled and made read-only without harm to the machine: where loop devices may be mounted, each storage node has a
//! small file system of its own. Elsewhere the directory is a plain one, and faults that need more are left out.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of a storage node's file system.
/// The engine grows in steps of a quarter gigabyte, of which one fits: a full disk is felt at once.
const SIZE: u64 = 640 << 20;

/// One storage node's disk.
pub struct NodeDisk {
    /// The mount point, or a directory.
    pub path: PathBuf,
    image: Option<PathBuf>,
    /// Files can be made immutable here.
    pub lockable: bool,
}

fn quiet(program: &str, args: &[&str]) -> bool {
    let mut run = Command::new(program);
    run.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    run.status().is_ok_and(|status| status.success())
}

impl NodeDisk {
    pub fn make(images: &Path, path: PathBuf) -> std::io::Result<NodeDisk> {
        std::fs::create_dir_all(&path)?;
        let image = images.join(format!("{}.img", path.file_name().unwrap_or_default().display()));
        let text = |path: &Path| path.display().to_string();
        std::fs::File::create(&image)?.set_len(SIZE)?;
        let mounted = quiet("mkfs.ext4", &["-q", "-F", &text(&image)])
            && quiet("mount", &["-o", "loop", &text(&image), &text(&path)]);
        let image = if mounted {
            Some(image)
        } else {
            std::fs::remove_file(&image)?;
            None
        };
        let probe = path.join("probe");
        std::fs::write(&probe, b"")?;
        let lockable = quiet("chattr", &["+i", &text(&probe)]) && quiet("chattr", &["-i", &text(&probe)]);
        std::fs::remove_file(&probe)?;
        Ok(NodeDisk { path, image, lockable })
    }

    /// It has a file system of its own, which may be filled.
    pub fn fillable(&self) -> bool {
        self.image.is_some()
    }

    /// Takes all room that is left. True if that worked.
    pub fn fill(&self) -> bool {
        let Ok(stat) = rustix::fs::statvfs(&self.path) else { return false };
        let free = stat.f_bavail * stat.f_frsize;
        let Ok(ballast) = std::fs::File::create(self.path.join("ballast")) else { return false };
        // The last blocks may be metadata's.
        (0..8).any(|shrink| {
            let size = free.saturating_sub(shrink << 20).max(4096);
            rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, size).is_ok()
        })
    }

    pub fn unfill(&self) {
        let _ = std::fs::remove_file(self.path.join("ballast"));
    }

    /// Makes every file read-only, also for who has it open; or writable again.
    pub fn lock(&self, locked: bool) -> bool {
        let flag = if locked { "+i" } else { "-i" };
        quiet("chattr", &["-R", flag, &self.path.join("disk-1").display().to_string()])
    }

    /// Takes the file system away. Plain directories stay where they are.
    pub fn unmount(&mut self) {
        self.unfill();
        if self.lockable {
            self.lock(false);
        }
        if let Some(image) = self.image.take() {
            let path = self.path.display().to_string();
            if !quiet("umount", &[&path]) {
                quiet("umount", &["-l", &path]);
            }
            let _ = std::fs::remove_file(image);
        }
    }
}

impl NodeDisk {
    /// Unmounts, and keeps the image.
    pub fn leave(&mut self) {
        if self.image.take().is_some() {
            let path = self.path.display().to_string();
            if !quiet("umount", &[&path]) {
                quiet("umount", &["-l", &path]);
            }
        }
    }
}
