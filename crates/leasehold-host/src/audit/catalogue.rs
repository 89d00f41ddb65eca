//! Every finding that there is: what was looked at, why it matters, who says so, what to do about it.
//!
//! The table in `docs/audit.md` is made from this, and so is `leasehold audit --explain`. An id stays what it is: scripts
//! and baselines know it. What is called "measured" was measured for this project on Linux 6.1.192, 6.12.117 (with
//! soft-RoCE) and 6.18.44, on ext4, XFS and btrfs; `docs/audit.md` has the figures.

use super::finding::Severity::{self, High, Low, Medium};

/// A kind of finding.
#[derive(Debug)]
pub struct Entry {
    /// Its name, for ever.
    pub id: &'static str,
    /// How bad it is where something does DMA.
    pub severity: Severity,
    /// Whether it is low where nothing was seen that does DMA.
    pub needs_dma: bool,
    /// In a line.
    pub title: &'static str,
    /// What is looked at.
    pub evidence: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// Who says so.
    pub source: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
    /// Commands that can be pasted; `{name}` stands for what was found.
    pub commands: &'static [&'static str],
}

const MEASURED_PINS: &str = "measured on Linux 6.1 with soft-RoCE; thread \"RDMA data corruption potential during FS \
                             writeback\", linux-rdma and linux-mm, May 2018";
const MEASURED_SHORT: &str = "measured on Linux 6.18: O_DIRECT reads into a shared mapping";

/// The kernel lets any program pin file pages.
pub static KERNEL_FILE_PIN: Entry = Entry {
    id: "LH-KERNEL-FILE-PIN",
    severity: High,
    needs_dma: true,
    title: "the kernel accepts long-term pins of file pages for writing",
    evidence: "the kernel's release, below 6.5; or what a probe measured",
    why: "Writeback cleans a page, and nothing makes it dirty again while a device goes on writing into it: of 256 pages \
          written by RDMA after an fsync, 256 were lost, each write and each fsync reporting success. Since 6.5 such a \
          registration fails.",
    source: "Linux 6.5, commits 8ac268436e6d and a6e79df92e4a; measured on Linux 6.1 with soft-RoCE",
    remedy: "Run a kernel from 6.5 on, or register anonymous or hugetlb memory only. Measure what this kernel does:",
    commands: &["leasehold probe /var/tmp"],
};

/// XFS with reflink.
pub static MOUNT_REFLINK: Entry = Entry {
    id: "LH-MOUNT-REFLINK",
    severity: Medium,
    needs_dma: true,
    title: "a clone taken while DMA goes on changes later, silently",
    evidence: "XFS with reflink=1, mounted writable",
    why: "DMA that lands after FICLONE, or after a plain cp (which clones), goes into the clone as well: 30 of 30 clones \
          and 10 of 10 copies changed, and nothing has a checksum that could tell.",
    source: MEASURED_SHORT,
    remedy: "Make real copies of files under DMA; keep such files on a filesystem that was made with reflink=0. Look, and \
             copy (FROM, TO):",
    commands: &["xfs_info {mount} | grep -o 'reflink=.'", "cp --reflink=never FROM TO"],
};

/// btrfs or ZFS with checksums.
pub static MOUNT_CHECKSUM: Entry = Entry {
    id: "LH-MOUNT-CHECKSUM",
    severity: Medium,
    needs_dma: true,
    title: "a buffer that changes in flight becomes a checksum error",
    evidence: "btrfs without nodatasum, or ZFS, mounted writable",
    why: "The checksum is of the page as it was before DMA changed it, so the block can never be read again: on btrfs 1,925 \
          of 14,592 pages that were written back under RDMA gave EIO, and so did pages in 91 of 667 clones that were taken \
          under O_DIRECT reads.",
    source: "measured on Linux 6.1 and 6.18; zfs issues #16598 and #18610, lxd #7843",
    remedy: "Let DMA go to memory that is not the file's, and write that. For files that must be DMA targets, make a \
             directory whose new files have no checksums (btrfs; they lose them for good):",
    commands: &["mkdir {mount}/dma && chattr +C {mount}/dma"],
};

/// DAX.
pub static MOUNT_DAX: Entry = Entry {
    id: "LH-MOUNT-DAX",
    severity: Medium,
    needs_dma: true,
    title: "on DAX registrations fail, and a truncate waits for pins without end",
    evidence: "the mount options dax and dax=always",
    why: "A file mapping on DAX cannot be registered (EOPNOTSUPP). A truncate or a hole punch waits until the last \
          short-term pin is gone: without a limit, and without a word to whoever holds it.",
    source: "measured on Linux 6.1 and 6.12; break_layouts() of XFS and ext4; the threads of 2018 and 2019",
    remedy: "Give files that are to be registered a mount without DAX, or use device-dax.",
    commands: &["grep -nF {mount} /etc/fstab"],
};

/// NFS, SMB, Lustre, ..
pub static MOUNT_NETWORK: Entry = Entry {
    id: "LH-MOUNT-NETWORK",
    severity: Low,
    needs_dma: true,
    title: "others change these files, and no lease of this host is asked",
    evidence: "a network filesystem, mounted writable",
    why: "A server recalls what it lent on its own terms: NFSv4 revokes a delegation, and the client learns at its next call; \
          Lustre evicts the whole client and drops its dirty pages; an SMB server acknowledges for a client that does not. \
          None of them fences DMA.",
    source: "RFC 8881 section 10 (NFSv4.1); Lustre LDLM; MS-SMB2, lease break acknowledgment timer",
    remedy: "Do not let devices write into mappings of these files. Copy to a local filesystem first.",
    commands: &["findmnt {mount}"],
};

/// FUSE.
pub static MOUNT_FUSE: Entry = Entry {
    id: "LH-MOUNT-FUSE",
    severity: Low,
    needs_dma: true,
    title: "a daemon has these files: pins last as long as its answers take",
    evidence: "a FUSE filesystem, mounted writable",
    why: "An O_DIRECT read keeps its target pages pinned until the daemon answers, be it for hours. Nobody but the daemon can \
          tell what becomes of a range: fanotify reports opens only, FICLONE and COLLAPSE_RANGE never reach the daemon.",
    source: "measured on Linux 6.18, with fuser 0.18",
    remedy: "Do not read from it with O_DIRECT into mapped files. See how many requests wait:",
    commands: &["grep . /sys/fs/fuse/connections/*/waiting"],
};

/// overlayfs.
pub static MOUNT_OVERLAY: Entry = Entry {
    id: "LH-MOUNT-OVERLAY",
    severity: Low,
    needs_dma: true,
    title: "on an overlay, nobody can guard a file against changes",
    evidence: "an overlay as the root, or one that a path is on",
    why: "fanotify reports opens on an overlay and nothing else: a truncate, a punch or a clone of a file under DMA can \
          neither be seen nor delayed, and the layer below can be changed beside it.",
    source: "measured on Linux 6.18",
    remedy: "Mount a volume of the host for data that devices write:",
    commands: &["findmnt -o TARGET,SOURCE,FSTYPE {mount}"],
};

/// tmpfs that was asked for.
pub static MOUNT_TMPFS: Entry = Entry {
    id: "LH-MOUNT-TMPFS",
    severity: Medium,
    needs_dma: true,
    title: "on tmpfs a pin is accepted, and a truncate or a punch orphans it",
    evidence: "a path that is on tmpfs",
    why: "Every kernel accepts long-term pins of tmpfs pages for writing. A truncate or a hole punch takes the pages out of \
          the file, and the device goes on writing into pages that nobody reads: everything was lost.",
    source: "measured on Linux 6.1 and 6.12 with soft-RoCE",
    remedy: "Use a memfd sealed against shrinking (F_SEAL_SHRINK) in its place, and see that nobody else opens the files:",
    commands: &["fuser -vm {mount}"],
};

/// Write barriers off.
pub static MOUNT_NOBARRIER: Entry = Entry {
    id: "LH-MOUNT-NOBARRIER",
    severity: Medium,
    needs_dma: false,
    title: "fsync does not reach the disk's medium",
    evidence: "the mount options nobarrier and barrier=0",
    why: "Without barriers an fsync returns once the drive's volatile cache has the data. A power loss takes what was \
          acknowledged, whoever wrote it.",
    source: "Linux, Documentation/admin-guide/ext4.rst, \"barrier\"",
    remedy: "Turn barriers on, and take the option out of /etc/fstab:",
    commands: &["mount -o remount,barrier {mount}"],
};

/// btrfs autodefrag.
pub static MOUNT_AUTODEFRAG: Entry = Entry {
    id: "LH-MOUNT-AUTODEFRAG",
    severity: Low,
    needs_dma: true,
    title: "files are rewritten in the background, whoever has leases on them",
    evidence: "the mount option autodefrag",
    why: "What is rewritten is written back, with a checksum of how its pages look at that moment; DMA that lands then makes \
          the block unreadable. The kernel's own thread does it, so no lease is broken and nobody is told.",
    source: "measured on Linux 6.1 (writeback under RDMA on btrfs); btrfs(5)",
    remedy: "Mount it without:",
    commands: &["mount -o remount,noautodefrag {mount}"],
};

/// A filesystem that does not answer.
pub static MOUNT_HUNG: Entry = Entry {
    id: "LH-MOUNT-HUNG",
    severity: High,
    needs_dma: false,
    title: "the filesystem does not answer",
    evidence: "a local mount, or a path, that does not answer within 2 s",
    why: "Whatever is read or written there waits, pins are held meanwhile, and a break of a lease cannot be answered. \
          Nothing else could be learned about it.",
    source: "seen here",
    remedy: "See who waits, and for what (state D, and where in the kernel):",
    commands: &["ps -eo pid,stat,wchan:32,comm | awk '$2 ~ /D/'", "findmnt {mount}"],
};

/// Deduplication.
pub static SERVICE_DEDUP: Entry = Entry {
    id: "LH-SERVICE-DEDUP",
    severity: Medium,
    needs_dma: true,
    title: "a deduplicator exchanges the blocks under files",
    evidence: "duperemove, bees, jdupes, rmlint, dduper: units, cron, processes",
    why: "It makes files share blocks while they are in use. A clone onto a range that is a DMA target orphans the pinned \
          pages: the data were lost 10 times of 10, on XFS and on btrfs, and the read that brought them succeeded.",
    source: MEASURED_SHORT,
    remedy: "Take the directories that are DMA targets out of its configuration, or turn it off:",
    commands: &["systemctl disable --now {unit}"],
};

/// Defragmentation.
pub static SERVICE_DEFRAG: Entry = Entry {
    id: "LH-SERVICE-DEFRAG",
    severity: Medium,
    needs_dma: true,
    title: "a defragmenter moves files while they are in use",
    evidence: "xfs_fsr, e4defrag, btrfs defragment: units, cron, processes",
    why: "It opens each file (which breaks leases on it), copies its blocks and exchanges them. It knows nothing of pages \
          that a device writes, and what lands behind its copy is written to where the file no longer is.",
    source: "xfs_fsr(8), e4defrag(8); thread \"Discuss least bad options\", February 2019, on layout changes under pins",
    remedy: "Turn it off, or take DMA targets out (xfsctl's no-defrag flag: xfs_io -c 'chattr +f' FILE):",
    commands: &["systemctl disable --now {unit}"],
};

/// Snapshots.
pub static SERVICE_SNAPSHOT: Entry = Entry {
    id: "LH-SERVICE-SNAPSHOT",
    severity: Medium,
    needs_dma: true,
    title: "snapshots are taken by the clock, whatever DMA goes on",
    evidence: "snapper, timeshift, btrbk, sanoid, zfs-auto-snapshot: units, cron, processes",
    why: "A snapshot opens no file, so no lease is broken. Of clones taken under DMA on btrfs, 91 of 667 had blocks that \
          cannot be read for ever; where no checksums are, it holds half of what was being written.",
    source: MEASURED_SHORT,
    remedy: "Keep DMA targets in a subvolume or dataset of their own that is not in its configuration, or turn it off:",
    commands: &["systemctl disable --now {unit}"],
};

/// btrfs balance.
pub static SERVICE_BALANCE: Entry = Entry {
    id: "LH-SERVICE-BALANCE",
    severity: Low,
    needs_dma: true,
    title: "blocks are moved to other places by the clock",
    evidence: "btrfs-balance: units, cron, processes",
    why: "A balance relocates every block of a file below whoever maps it. It breaks no lease and tells nobody; whoever knows \
          where the blocks lie (a layout, a device that reads by block number) is wrong afterwards.",
    source: "btrfs-balance(8); FL_LAYOUT leases have no API for programs (linux/filelock.h)",
    remedy: "Turn it off where block addresses are used:",
    commands: &["systemctl disable --now {unit}"],
};

/// Freezing from outside.
pub static SERVICE_FREEZE: Entry = Entry {
    id: "LH-SERVICE-FREEZE",
    severity: Medium,
    needs_dma: true,
    title: "backups freeze the filesystem from outside, and DMA goes on",
    evidence: "qemu-guest-agent, vmtoolsd, fsfreeze: units, cron, processes",
    why: "While a filesystem is frozen (FIFREEZE), DMA changed blocks on its disk on ext4, XFS and btrfs; of 8 copies of a \
          frozen btrfs, 3 had checksum errors. So the backup that is made of the disk then is torn.",
    source: "measured on Linux 6.18",
    remedy: "Stop DMA in the agent's freeze hook (/etc/qemu/fsfreeze-hook.d, /etc/vmware-tools/backupScripts.d), or turn the \
             freezing off:",
    commands: &["ls /etc/qemu/fsfreeze-hook.d /etc/vmware-tools/backupScripts.d"],
};

/// copytruncate.
pub static SERVICE_TRUNCATE: Entry = Entry {
    id: "LH-SERVICE-TRUNCATE",
    severity: Medium,
    needs_dma: true,
    title: "files are truncated in place by the clock",
    evidence: "logrotate rules with copytruncate, of files outside /var/log",
    why: "What a device writes into a file's pages is lost once the file is truncated, also what it writes later: 10 times of \
          10 on every filesystem. What comes between the copy and the truncate is lost without any DMA.",
    source: MEASURED_SHORT,
    remedy: "Use create, and have the program open its file again. The rule is in:",
    commands: &["grep -n -B9 copytruncate {file}"],
};

/// Trim of a loop device.
pub static TRIM_LOOP: Entry = Entry {
    id: "LH-TRIM-LOOP",
    severity: Low,
    needs_dma: true,
    title: "trimming a loop device punches holes into the file below it",
    evidence: "loop devices with a backing file, and fstrim.timer or the option discard",
    why: "A discard on a loop device becomes a hole punch in its file, through a descriptor that was open before any lease: \
          the lease is not broken, and whoever maps or has pinned the file loses the range.",
    source: "drivers/block/loop.c (REQ_OP_DISCARD); measured on Linux 6.18: what earlier descriptors do breaks no lease",
    remedy: "Turn discards off for the device, or do not map the file:",
    commands: &["echo 0 > /sys/block/{loop}/queue/discard_max_bytes"],
};

/// Leases are off.
pub static LEASE_DISABLED: Entry = Entry {
    id: "LH-LEASE-DISABLED",
    severity: Medium,
    needs_dma: true,
    title: "no program can take a file lease",
    evidence: "/proc/sys/fs/leases-enable",
    why: "A lease is all that the kernel offers to be told before a file is truncated or opened. With leases off, whoever \
          asks for one gets an error, or goes on without.",
    source: "proc_sys_fs(5), leases-enable; fcntl(2), F_SETLEASE",
    remedy: "Turn them on, and take the setting out of /etc/sysctl.d:",
    commands: &["sysctl -w fs.leases-enable=1"],
};

/// Too little time.
pub static LEASE_BREAK_SHORT: Entry = Entry {
    id: "LH-LEASE-BREAK-SHORT",
    severity: Medium,
    needs_dma: true,
    title: "a lease is taken away before its holder can stop DMA",
    evidence: "/proc/sys/fs/lease-break-time, below 5 s",
    why: "When the time is over, the kernel drops the lease and the breaker goes on, but the holder's mapping and its devices \
          go on writing: permission is revoked, access is not.",
    source: "fcntl(2), F_SETLEASE; measured on Linux 6.18: an ignored break is forced at lease-break-time",
    remedy: "Give holders the default of 45 s:",
    commands: &["sysctl -w fs.lease-break-time=45"],
};

/// Too much time.
pub static LEASE_BREAK_LONG: Entry = Entry {
    id: "LH-LEASE-BREAK-LONG",
    severity: Low,
    needs_dma: false,
    title: "whoever opens a leased file may wait very long",
    evidence: "/proc/sys/fs/lease-break-time, above 120 s",
    why: "An open or a truncate of a leased file waits until the holder answers, or until this time is over, and is not told \
          for whom it waits.",
    source: "fcntl(2), F_SETLEASE",
    remedy: "Set the default of 45 s:",
    commands: &["sysctl -w fs.lease-break-time=45"],
};

/// A break that goes on.
pub static LEASE_BREAKING: Entry = Entry {
    id: "LH-LEASE-BREAKING",
    severity: Medium,
    needs_dma: false,
    title: "a lease is being broken now, and its holder has not answered",
    evidence: "/proc/locks",
    why: "Somebody waits in open or truncate for this holder. When lease-break-time is over, the lease is gone, and a holder \
          that did not answer still writes through its mapping.",
    source: "proc(5), /proc/locks; measured on Linux 6.18",
    remedy: "See which file it is, and what the holder does:",
    commands: &["find {mount} -xdev -inum {inode}", "ls -l /proc/{pid}/fd", "cat /proc/{pid}/wchan"],
};

/// A lease of a process that does DMA.
pub static LEASE_NO_FENCE: Entry = Entry {
    id: "LH-LEASE-NO-FENCE",
    severity: Low,
    needs_dma: false,
    title: "a process guards DMA with a kernel lease, which fences nothing",
    evidence: "/proc/locks: a lease of a process that has RDMA, VFIO or GPU devices open",
    why: "The lease is not bound to the memory region. Unlink, rename, and whatever comes through a descriptor that was open \
          before do not break it; and when it is broken, the device's access stays.",
    source: "measured on Linux 6.18; Gunthorpe, thread of February 2019: the region should hold the lease",
    remedy: "See that the program deregisters its memory before it gives the lease back. Which file it is:",
    commands: &["find {mount} -xdev -inum {inode}"],
};

/// A region in a file mapping.
pub static MR_IN_FILE: Entry = Entry {
    id: "LH-MR-IN-FILE",
    severity: High,
    needs_dma: false,
    title: "a live memory region lies in a mapping of a file",
    evidence: "rdma netlink: the region's address; /proc/PID/maps",
    why: "What peers write is lost once the page was written back (256 of 256 pages); what they read is old once the file was \
          truncated, punched or cloned over (256 of 256), and they are told success.",
    source: MEASURED_PINS,
    remedy: "Have the program register anonymous or hugetlb memory, and copy. Until then stop it before anything touches the \
             file:",
    commands: &["rdma resource show mr pid {pid}", "systemctl stop {unit}"],
};

/// A pin and a mapping, on a kernel that lets them meet.
pub static DMA_FILE_PIN: Entry = Entry {
    id: "LH-DMA-FILE-PIN",
    severity: High,
    needs_dma: false,
    title: "a process pins memory and maps files, and the kernel lets both meet",
    evidence: "/proc/PID: a shared writable mapping of a file, and RDMA, VFIO, a GPU or VmPin; a kernel that accepts it",
    why: "On this kernel the mapping itself can be what is pinned. Then what the device writes after the next writeback is \
          lost without an error, also after deregistration if the file was truncated meanwhile.",
    source: MEASURED_PINS,
    remedy: "Ask the program's authors what it registers; run a kernel from 6.5 on, on which such a registration fails:",
    commands: &["grep -E 'VmPin|VmLck' /proc/{pid}/status", "grep ' rw-s' /proc/{pid}/maps | grep ' /'"],
};

/// RDMA and a mapping.
pub static RDMA_FILE: Entry = Entry {
    id: "LH-RDMA-FILE",
    severity: Medium,
    needs_dma: false,
    title: "a process does RDMA and maps files for writing",
    evidence: "rdma netlink, or /dev/infiniband/uverbsN open; /proc/PID/maps",
    why: "The kernel refuses such a mapping to peers that write, not to peers that read: after a truncate, a punch or a clone \
          over the file they got 256 of 256 old pages, and success.",
    source: "measured on Linux 6.12 with soft-RoCE",
    remedy: "See whether one of the regions is in the mapping (lengths and addresses), and register a copy in its place:",
    commands: &["rdma resource show mr pid {pid}", "grep ' rw-s' /proc/{pid}/maps | grep ' /'"],
};

/// VFIO and a mapping.
pub static VFIO_FILE: Entry = Entry {
    id: "LH-VFIO-FILE",
    severity: Medium,
    needs_dma: false,
    title: "a process gives a device its memory by VFIO, and maps files for writing",
    evidence: "/dev/vfio/N open; /proc/PID/maps",
    why: "Memory of a guest that lies in a file (memory-backend-file with share=on) is what its devices write. On a kernel \
          that refuses the pin the device cannot be attached; what was pinned for reading goes stale.",
    source: "Linux 6.5, commits 8ac268436e6d and a6e79df92e4a; measured on Linux 6.12",
    remedy: "Back guests by memfd or hugetlbfs (memory-backend-memfd). What is mapped:",
    commands: &["grep ' rw-s' /proc/{pid}/maps | grep ' /'"],
};

/// A GPU and a mapping.
pub static GPU_FILE: Entry = Entry {
    id: "LH-GPU-FILE",
    severity: Low,
    needs_dma: false,
    title: "a process uses a GPU, and maps files for writing",
    evidence: "/dev/nvidiaN or /dev/kfd open; /proc/PID/maps",
    why: "If the mapping is given to the device (cudaHostRegister, GPUDirect Storage), it is refused, or goes stale when the \
          file changes. gds-diag checks support and performance, not this.",
    source: "Linux 6.5, commit 8ac268436e6d; measured on Linux 6.12",
    remedy: "Map privately (MAP_PRIVATE, or mode \"c\" of numpy.memmap), or copy. What is mapped:",
    commands: &["grep ' rw-s' /proc/{pid}/maps | grep ' /'"],
};

/// Pinned memory and a mapping.
pub static PINNED_FILE: Entry = Entry {
    id: "LH-PINNED-FILE",
    severity: Low,
    needs_dma: false,
    title: "a process has pinned memory, and maps files for writing",
    evidence: "/proc/PID/status: VmPin; /proc/PID/maps",
    why: "Something pinned its memory for long (AF_XDP, io_uring, a driver of its own). The kernel refuses file pages to pins \
          for writing, not to pins for reading, which go stale.",
    source: "measured on Linux 6.12; Documentation/core-api/pin_user_pages.rst",
    remedy: "See what it has open, and what it maps:",
    commands: &["ls -l /proc/{pid}/fd", "grep ' rw-s' /proc/{pid}/maps | grep ' /'"],
};

/// A fixed buffer in a mapping.
pub static URING_FILE: Entry = Entry {
    id: "LH-URING-FILE",
    severity: High,
    needs_dma: false,
    title: "a fixed buffer of an io_uring lies in a mapping of a file",
    evidence: "/proc/PID/fdinfo of the io_uring: the buffers' addresses; /proc/PID/maps",
    why: "Each kernel that was measured refuses it (EOPNOTSUPP on 6.1, EFAULT on 6.12 and 6.18). Where it was accepted, what \
          is read into the buffer is lost after writeback, truncate or punch.",
    source: "measured on Linux 6.1, 6.12 and 6.18; liburing issues #131, #197, #358",
    remedy: "Register anonymous or hugetlb memory. Which ring it is:",
    commands: &["grep -A9 UserBufs /proc/{pid}/fdinfo/*"],
};

/// Direct I/O into a mapping.
pub static DIRECT_FILE: Entry = Entry {
    id: "LH-DIRECT-FILE",
    severity: Medium,
    needs_dma: false,
    title: "a process reads with O_DIRECT, and maps files for writing",
    evidence: "/proc/PID/fdinfo: O_DIRECT; /proc/PID/maps: shared, writable",
    why: "If it reads into the mapping, the pages are pinned while the read goes on. A truncate, a punch or a zeroing in that \
          time loses the data, 10 times of 10 on ext4, XFS and btrfs; so does another O_DIRECT write of the file on ext4 \
          and XFS. The read reports success.",
    source: MEASURED_SHORT,
    remedy: "Read into anonymous memory and copy, or write with pwrite. What is mapped:",
    commands: &["grep ' rw-s' /proc/{pid}/maps | grep ' /'"],
};

/// DMA and a file without a name.
pub static DELETED_FILE: Entry = Entry {
    id: "LH-DELETED-FILE",
    severity: Medium,
    needs_dma: false,
    title: "a process that does DMA maps a file that has been removed",
    evidence: "/proc/PID/maps: (deleted); and RDMA, VFIO, a GPU, VmPin, fixed buffers or O_DIRECT",
    why: "Unlink breaks no lease. What devices write into the pages of a removed file reaches no file that anybody can open; \
          a new file of the same name has none of it.",
    source: "measured on Linux 6.1 with soft-RoCE: unlink, blocks reused",
    remedy: "Save it while the process lives, if it is wanted (N is the mapping's range):",
    commands: &["ls -l /proc/{pid}/map_files | grep deleted", "cp /proc/{pid}/map_files/N /var/tmp/saved"],
};

/// A device that cannot fault.
pub static RDMA_NO_ODP: Entry = Entry {
    id: "LH-RDMA-NO-ODP",
    severity: Low,
    needs_dma: false,
    title: "the RDMA device cannot fault: each registration pins",
    evidence: "/sys/class/infiniband: the driver, and the kernel's version",
    why: "Without on-demand paging the kernel cannot take a page back from the device, so writeback, truncate and reclaim race \
          with DMA or wait for the pin. soft-RoCE had none when it was measured.",
    source: "measured on Linux 6.1 and 6.12; Glisse and Gunthorpe, the threads of 2018 and 2019",
    remedy: "Use a device with on-demand paging if registered memory is ever a file's. What the device says:",
    commands: &["ibv_devinfo -v -d {device} | grep -A4 odp"],
};

/// A limit that registrations meet.
pub static LIMIT_MEMLOCK: Entry = Entry {
    id: "LH-LIMIT-MEMLOCK",
    severity: Low,
    needs_dma: false,
    title: "a service that does RDMA may pin little memory",
    evidence: "LimitMEMLOCK= of units that name RDMA devices; /proc/PID/limits of what has them open, without CAP_IPC_LOCK",
    why: "Registrations count as locked memory. The usual limit is 8 MiB or less; beyond it ibv_reg_mr fails with ENOMEM, and nothing says \
          that a limit is the cause. Programs that fall back then copy.",
    source: "systemd.exec(5), LimitMEMLOCK=; ibv_reg_mr(3); getrlimit(2), RLIMIT_MEMLOCK",
    remedy: "Raise it for this unit:",
    commands: &[
        "mkdir -p /etc/systemd/system/{unit}.d",
        "printf '[Service]\\nLimitMEMLOCK=infinity\\n' > /etc/systemd/system/{unit}.d/memlock.conf",
        "systemctl daemon-reload && systemctl restart {unit}",
    ],
};

/// A limit that is nearly met.
pub static LIMIT_MEMLOCK_NEAR: Entry = Entry {
    id: "LH-LIMIT-MEMLOCK-NEAR",
    severity: Medium,
    needs_dma: false,
    title: "a process has pinned nearly all that it may",
    evidence: "/proc/PID/status: VmPin and VmLck, 90 % of /proc/PID/limits or more; without CAP_IPC_LOCK",
    why: "The next registration fails with ENOMEM, in the middle of the work.",
    source: "getrlimit(2), RLIMIT_MEMLOCK; ibv_reg_mr(3)",
    remedy: "Raise the limit of the running process, and in its unit (LimitMEMLOCK=infinity):",
    commands: &["prlimit --pid {pid} --memlock=unlimited"],
};

/// No permission events.
pub static FANOTIFY_NONE: Entry = Entry {
    id: "LH-FANOTIFY-NONE",
    severity: Low,
    needs_dma: true,
    title: "nobody can delay or deny those who would change a file",
    evidence: "the kernel's configuration: FANOTIFY_ACCESS_PERMISSIONS",
    why: "fanotify's permission events are the only way to hold up an open, a truncate or a punch by anybody, root included, \
          until DMA has stopped; and they name the process.",
    source: "fanotify(7); measured on Linux 6.18",
    remedy: "Run a kernel that has it:",
    commands: &["grep FANOTIFY /boot/config-$(uname -r)"],
};

/// All of them, as they are listed.
pub static CATALOGUE: &[&Entry] = &[
    &KERNEL_FILE_PIN,
    &MR_IN_FILE,
    &DMA_FILE_PIN,
    &URING_FILE,
    &RDMA_FILE,
    &VFIO_FILE,
    &GPU_FILE,
    &PINNED_FILE,
    &DIRECT_FILE,
    &DELETED_FILE,
    &MOUNT_REFLINK,
    &MOUNT_CHECKSUM,
    &MOUNT_DAX,
    &MOUNT_TMPFS,
    &MOUNT_NETWORK,
    &MOUNT_FUSE,
    &MOUNT_OVERLAY,
    &MOUNT_NOBARRIER,
    &MOUNT_AUTODEFRAG,
    &MOUNT_HUNG,
    &SERVICE_DEDUP,
    &SERVICE_DEFRAG,
    &SERVICE_SNAPSHOT,
    &SERVICE_BALANCE,
    &SERVICE_FREEZE,
    &SERVICE_TRUNCATE,
    &TRIM_LOOP,
    &LEASE_DISABLED,
    &LEASE_BREAK_SHORT,
    &LEASE_BREAK_LONG,
    &LEASE_BREAKING,
    &LEASE_NO_FENCE,
    &RDMA_NO_ODP,
    &LIMIT_MEMLOCK,
    &LIMIT_MEMLOCK_NEAR,
    &FANOTIFY_NONE,
];

/// The entry of this id.
#[must_use]
pub fn entry(id: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().copied().find(|entry| entry.id.eq_ignore_ascii_case(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_entry_has_an_id_of_its_own_and_all_of_its_parts() {
        let ids: BTreeSet<&str> = CATALOGUE.iter().map(|entry| entry.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len());
        for entry in CATALOGUE {
            assert!(entry.id.starts_with("LH-"), "{}", entry.id);
            let parts = [entry.title, entry.evidence, entry.why, entry.source, entry.remedy];
            assert!(parts.iter().all(|part| !part.trim().is_empty()), "{}", entry.id);
            assert!(!entry.commands.is_empty(), "{}", entry.id);
            assert!(entry.title.len() <= 76, "{}: {}", entry.id, entry.title.len());
        }
    }

    #[test]
    fn every_entry_of_this_file_is_in_the_list() {
        let declared = include_str!("catalogue.rs").matches(": Entry = Entry {").count();
        // One of them is in the line above.
        assert_eq!(declared - 1, CATALOGUE.len());
    }
}
