//! A copy of a host that was made up: an RDMA host on which nothing is wrong, and on which a test changes one thing.

use crate::audit::netlink::made;
use crate::audit::{AuditError, Host, Options, Report, audit};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The process that does RDMA, by anonymous memory.
pub const TRAINER: u32 = 4711;
/// A process that maps its log, as many do.
pub const JOURNAL: u32 = 300;

pub struct Fixture {
    directory: TempDir,
    calls: Value,
}

impl Fixture {
    pub fn clean() -> Fixture {
        let fixture = Fixture { directory: TempDir::new().unwrap(), calls: json!({}) };
        fixture.put("/proc/sys/kernel/osrelease", "6.12.43+deb13-amd64\n");
        fixture.put(
            "/proc/self/mountinfo",
            "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
             23 27 0:22 / /dev/shm rw - tmpfs tmpfs rw\n\
             27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,discard\n\
             28 27 259:0 / /data rw,relatime shared:2 - ext4 /dev/nvme0n1 rw\n\
             29 27 7:0 / /snap/core ro - squashfs /dev/loop0 ro\n",
        );
        fixture.put("/data/README", "The mount point is there.\n");
        fixture.put("/proc/filesystems", "nodev\tproc\n\text4\n\tfuse\n");
        fixture.put("/proc/sys/fs/leases-enable", "1\n");
        fixture.put("/proc/sys/fs/lease-break-time", "45\n");
        fixture.put("/proc/sys/fs/fanotify/max_user_groups", "128\n");
        fixture.put("/proc/locks", "1: POSIX  ADVISORY  WRITE 300 08:01:77 0 EOF\n");
        fixture.put(
            "/boot/config-6.12.43+deb13-amd64",
            "CONFIG_FANOTIFY=y\nCONFIG_FANOTIFY_ACCESS_PERMISSIONS=y\nCONFIG_FUSE_FS=m\nCONFIG_IO_URING=y\n",
        );
        fixture.put(
            "/etc/crontab",
            "# m h dom mon dow user command\n17 * * * * root run-parts /etc/cron.hourly\n",
        );
        fixture.put("/etc/cron.daily/man-db", "#!/bin/sh\nexec mandb\n");
        fixture.put("/etc/logrotate.d/apt", "/var/log/apt/term.log {\n  monthly\n  copytruncate\n}\n");
        fixture.unit("fstrim.timer", "[Timer]\nOnCalendar=weekly\n", true);
        fixture.unit(
            "fstrim.service",
            "[Service]\nExecStart=/usr/sbin/fstrim --listed-in /etc/fstab\n",
            false,
        );
        // There, and not enabled; and enabled, and masked.
        fixture.unit("xfs_fsr.timer", "[Timer]\nOnCalendar=weekly\n", false);
        fixture.unit("duperemove.timer", "[Timer]\nOnCalendar=daily\n", true);
        fixture.link("/etc/systemd/system/duperemove.timer", "/dev/null");
        fixture.unit(
            "trainer.service",
            "[Service]\nUser=train\nDeviceAllow=/dev/infiniband/uverbs0 rw\nLimitMEMLOCK=infinity\nExecStart=/opt/trainer\n",
            true,
        );

        fixture.link("/sys/class/infiniband/mlx5_0/device/driver", "../../../bus/pci/drivers/mlx5_core");
        fixture.process(TRAINER, "trainer", 65_536, 0);
        fixture.put(&format!("/proc/{TRAINER}/cgroup"), "0::/system.slice/trainer.service\n");
        fixture.limit(TRAINER, "unlimited");
        fixture.link(&format!("/proc/{TRAINER}/fd/5"), "/dev/infiniband/uverbs0");
        fixture.link(&format!("/proc/{TRAINER}/fd/6"), "anon_inode:[io_uring]");
        fixture
            .put(&format!("/proc/{TRAINER}/fdinfo/6"), "pos:\t0\nUserBufs:\t1\n    0: 0x7f0000000000/4096\n");
        fixture.put(
            &format!("/proc/{TRAINER}/maps"),
            "7f0000000000-7f0004000000 rw-p 00000000 00:00 0 \n\
             7f1000000000-7f1000001000 r--s 00000000 08:01 99                         /usr/lib/gconv-modules.cache\n\
             7f2000000000-7f2000001000 rw-s 00000000 00:01 5                          /memfd:arena (deleted)\n\
             7f3000000000-7f3000001000 rw-p 00000000 103:0 7                          /data/private\n",
        );
        fixture.process(JOURNAL, "systemd-journal", 0, 0);
        fixture.maps_file(
            JOURNAL,
            "7f4000000000-7f4000800000 rw-s 00000000 08:01 42    /var/log/journal/system.journal",
        );
        // A thread of the kernel has no memory.
        fixture.put("/proc/2/status", "Name:\tkthreadd\nPid:\t2\n");
        fixture.regions(&[made::region(TRAINER, 64 << 20, None), made::on_demand(TRAINER, 4096)])
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    fn at(&self, path: &str) -> PathBuf {
        let path = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub fn put(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).unwrap();
    }

    pub fn add(&self, path: &str, text: &str) {
        let old = fs::read_to_string(self.at(path)).unwrap_or_default();
        self.put(path, &(old + text));
    }

    pub fn link(&self, path: &str, target: &str) {
        symlink(target, self.at(path)).unwrap();
    }

    pub fn replace(&self, path: &str, from: &str, to: &str) {
        let old = fs::read_to_string(self.at(path)).unwrap();
        assert!(old.contains(from), "{path} has no {from:?}");
        self.put(path, &old.replace(from, to));
    }

    /// A unit, and whether something wants it.
    pub fn unit(&self, name: &str, text: &str, is_enabled: bool) {
        self.put(&format!("/usr/lib/systemd/system/{name}"), text);
        if is_enabled {
            let target = format!("/usr/lib/systemd/system/{name}");
            self.link(&format!("/etc/systemd/system/multi-user.target.wants/{name}"), &target);
        }
    }

    pub fn process(&self, pid: u32, name: &str, pinned_kib: u64, locked_kib: u64) {
        self.put(
            &format!("/proc/{pid}/status"),
            &format!(
                "Name:\t{name}\nPid:\t{pid}\nVmSize:\t  10240 kB\nVmLck:\t  {locked_kib} kB\nVmPin:\t  {pinned_kib} kB\n\
                 CapEff:\t0000000000000000\n"
            ),
        );
        fs::create_dir_all(self.root().join(format!("proc/{pid}/fd"))).unwrap();
        self.put(&format!("/proc/{pid}/maps"), "");
    }

    pub fn limit(&self, pid: u32, limit: &str) {
        let line = format!("Max locked memory         {limit}            {limit}            bytes\n");
        self.put(&format!("/proc/{pid}/limits"), &line);
    }

    pub fn maps_file(&self, pid: u32, line: &str) {
        self.add(&format!("/proc/{pid}/maps"), &format!("{line}\n"));
    }

    /// Maps /data/model.bin shared and for writing.
    pub fn maps_model(&self, pid: u32) {
        self.maps_file(pid, "7f5000000000-7f5004000000 rw-s 00000000 103:0 11    /data/model.bin");
    }

    pub fn mount(&self, line: &str) {
        self.add("/proc/self/mountinfo", &format!("{line}\n"));
    }

    /// What a mount point answers.
    pub fn answers(&mut self, mount: &str, answer: Value) {
        self.calls["mounts"][mount] = answer;
    }

    pub fn regions(mut self, entries: &[Vec<u8>]) -> Fixture {
        self.set_regions(entries);
        self
    }

    pub fn set_regions(&mut self, entries: &[Vec<u8>]) {
        let datagrams =
            [made::device(0, "mlx5_0"), made::done(), made::regions(0, "mlx5_0", entries), made::done()];
        self.calls["rdma"] = json!({"datagrams": datagrams.map(|datagram| made::hex(&datagram))});
    }

    pub fn refuse_regions(&mut self, errno: i32) {
        self.calls["rdma"] = json!({"errno": errno});
    }

    pub fn host(&self) -> Host {
        self.put(crate::audit::RECORDED, &self.calls.to_string());
        Host::copied(self.root()).unwrap()
    }

    pub fn report(&self) -> Report {
        self.try_report(&[]).unwrap()
    }

    pub fn try_report(&self, paths: &[&str]) -> Result<Report, AuditError> {
        let options = Options { paths: paths.iter().map(PathBuf::from).collect(), evidence: None };
        audit(self.host(), &options)
    }

    pub fn ids(&self) -> Vec<&'static str> {
        self.report().findings.iter().map(|finding| finding.entry.id).collect()
    }
}
