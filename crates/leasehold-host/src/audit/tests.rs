//! Planted problems: on a host on which nothing is wrong, one thing is changed, and its finding must be there.

mod fixture;

use super::catalogue::CATALOGUE;
use super::netlink::made;
use super::{Baseline, Evidence, Options, Report, Severity, audit, sarif, text};
use fixture::{Fixture, JOURNAL, TRAINER};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What is changed, and the finding that it must be.
type Planted = (&'static str, fn(&mut Fixture));

const PLANTED: &[Planted] = &[
    ("LH-KERNEL-FILE-PIN", |host| {
        host.put("/proc/sys/kernel/osrelease", "6.1.0-32-amd64\n");
        host.put("/boot/config-6.1.0-32-amd64", "CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y\n");
    }),
    ("LH-MR-IN-FILE", |host| {
        host.maps_model(TRAINER);
        host.set_regions(&[made::region(TRAINER, 4096, Some(0x7f50_0000_1000))]);
    }),
    ("LH-DMA-FILE-PIN", |host| {
        host.put("/proc/sys/kernel/osrelease", "5.14.0-503.el9.x86_64\n");
        host.maps_model(TRAINER);
    }),
    ("LH-URING-FILE", |host| {
        host.maps_model(TRAINER);
        host.put(
            &format!("/proc/{TRAINER}/fdinfo/6"),
            "UserBufs:\t2\n    0: 0x7f0000000000/4096\n    1: 0x7f5000002000/8192\n",
        );
    }),
    ("LH-RDMA-FILE", |host| host.maps_model(TRAINER)),
    ("LH-RDMA-FILE", |host| {
        // Whoever may not ask for regions knows of the device that is open.
        host.maps_model(TRAINER);
        host.refuse_regions(1);
    }),
    ("LH-VFIO-FILE", |host| {
        host.process(900, "qemu-system-x86", 0, 1_048_576);
        host.link("/proc/900/fd/20", "/dev/vfio/17");
        host.maps_model(900);
    }),
    ("LH-GPU-FILE", |host| {
        host.process(901, "python3", 0, 0);
        host.link("/proc/901/fd/20", "/dev/nvidia0");
        host.maps_model(901);
    }),
    ("LH-PINNED-FILE", |host| {
        host.process(902, "xdp-app", 2048, 0);
        host.maps_model(902);
    }),
    ("LH-DIRECT-FILE", |host| {
        host.process(903, "loader", 0, 0);
        host.link("/proc/903/fd/7", "/data/in.bin");
        // O_RDONLY | O_DIRECT as this machine has it.
        host.put(
            "/proc/903/fdinfo/7",
            &format!("pos:\t0\nflags:\t0{:o}\n", rustix::fs::OFlags::DIRECT.bits()),
        );
        host.maps_model(903);
    }),
    ("LH-DELETED-FILE", |host| {
        host.maps_file(
            TRAINER,
            "7f6000000000-7f6000001000 rw-s 00000000 103:0 12    /data/old.bin (deleted)",
        );
    }),
    ("LH-MOUNT-REFLINK", |host| {
        host.mount("30 27 259:1 / /scratch rw - xfs /dev/nvme1n1 rw,attr2");
        host.answers("/scratch", json!({"reflink": true}));
    }),
    ("LH-MOUNT-CHECKSUM", |host| {
        host.mount("30 27 0:40 / /pool rw - btrfs /dev/sdb rw,space_cache=v2");
        host.answers("/pool", json!({}));
    }),
    ("LH-MOUNT-CHECKSUM", |host| {
        host.mount("30 27 0:41 / /tank rw - zfs tank rw,xattr");
        host.answers("/tank", json!({}));
    }),
    ("LH-MOUNT-DAX", |host| {
        host.mount("30 27 259:2 / /pmem rw - ext4 /dev/pmem0 rw,dax=always");
        host.answers("/pmem", json!({}));
    }),
    ("LH-MOUNT-NETWORK", |host| host.mount("30 27 0:50 / /home rw - nfs4 filer:/home rw,vers=4.2,hard")),
    ("LH-MOUNT-FUSE", |host| host.mount("30 27 0:51 / /bucket rw - fuse.s3fs s3fs rw")),
    ("LH-MOUNT-OVERLAY", |host| {
        host.replace(
            "/proc/self/mountinfo",
            "/ / rw,relatime shared:1 - ext4 /dev/sda1",
            "/ / rw - overlay overlay",
        );
    }),
    ("LH-MOUNT-NOBARRIER", |host| {
        host.replace("/proc/self/mountinfo", "/dev/nvme0n1 rw", "/dev/nvme0n1 rw,nobarrier")
    }),
    ("LH-MOUNT-AUTODEFRAG", |host| {
        host.mount("30 27 0:40 / /pool rw - btrfs /dev/sdb rw,nodatasum,autodefrag");
        host.answers("/pool", json!({}));
    }),
    ("LH-MOUNT-HUNG", |host| host.answers("/data", json!({"hangs": true}))),
    ("LH-SERVICE-DEDUP", |host| host.unit("beesd@data.service", "", true)),
    ("LH-SERVICE-DEDUP", |host| {
        // By what it runs, whatever its name; the service of a timer, with settings that were dropped in.
        host.unit("nightly.timer", "[Timer]\nUnit=tidy.service\n", true);
        host.unit("tidy.service", "[Service]\nExecStart=/bin/true\n", false);
        host.put(
            "/etc/systemd/system/tidy.service.d/more.conf",
            "[Service]\nExecStart=/usr/bin/duperemove -dr /data\n",
        );
    }),
    ("LH-SERVICE-DEFRAG", |host| {
        host.put(
            "/etc/cron.weekly/xfs",
            "#!/bin/sh\n# tidy up\ntest -x /usr/sbin/xfs_fsr && /usr/sbin/xfs_fsr -t 3600\n",
        );
    }),
    ("LH-SERVICE-SNAPSHOT", |host| host.unit("snapper-timeline.timer", "[Timer]\nOnCalendar=hourly\n", true)),
    ("LH-SERVICE-BALANCE", |host| host.unit("btrfs-balance.timer", "[Timer]\nOnCalendar=monthly\n", true)),
    ("LH-SERVICE-FREEZE", |host| host.process(77, "qemu-ga", 0, 0)),
    ("LH-SERVICE-TRUNCATE", |host| {
        host.put("/etc/logrotate.d/trainer", "/data/out/*.log {\n  daily\n  copytruncate # as it was\n}\n");
    }),
    ("LH-TRIM-LOOP", |host| {
        host.mount("30 27 7:1 / /image rw - ext4 /dev/loop1 rw");
        host.answers("/image", json!({}));
        host.put("/sys/block/loop1/loop/backing_file", "/data/disk.img\n");
        host.put("/sys/block/loop1/queue/discard_max_bytes", "4294966784\n");
    }),
    ("LH-LEASE-DISABLED", |host| host.put("/proc/sys/fs/leases-enable", "0\n")),
    ("LH-LEASE-BREAK-SHORT", |host| host.put("/proc/sys/fs/lease-break-time", "0\n")),
    ("LH-LEASE-BREAK-LONG", |host| host.put("/proc/sys/fs/lease-break-time", "3600\n")),
    ("LH-LEASE-BREAKING", |host| {
        let lines = "2: LEASE  BREAKING  UNLCK 300 08:01:42 0 EOF\n2: -> LEASE  BREAKER   WRITE 4711 <none>:0 0 EOF\n";
        host.add("/proc/locks", lines);
    }),
    ("LH-LEASE-NO-FENCE", |host| host.add("/proc/locks", "2: LEASE  ACTIVE    READ  4711 103:00:11 0 EOF\n")),
    ("LH-RDMA-NO-ODP", |host| host.put("/sys/class/infiniband/rxe0/parent", "eth0\n")),
    ("LH-LIMIT-MEMLOCK", |host| {
        host.put("/etc/systemd/system/trainer.service.d/less.conf", "[Service]\nLimitMEMLOCK=8M\n");
    }),
    ("LH-LIMIT-MEMLOCK", |host| host.limit(TRAINER, "1073741824")),
    ("LH-LIMIT-MEMLOCK-NEAR", |host| {
        host.process(904, "pinner", 8000, 0);
        host.limit(904, "8388608");
    }),
    ("LH-FANOTIFY-NONE", |host| {
        host.put(
            "/boot/config-6.12.43+deb13-amd64",
            "CONFIG_FANOTIFY=y\n# CONFIG_FANOTIFY_ACCESS_PERMISSIONS is not set\n",
        );
    }),
];

/// What else must be found then, as it is a part of what was planted.
const BESIDES: &[(&str, &[&str])] = &[("LH-DMA-FILE-PIN", &["LH-KERNEL-FILE-PIN"])];

fn planted((_, plant): &Planted) -> Fixture {
    let mut host = Fixture::clean();
    plant(&mut host);
    host
}

#[test]
fn on_a_host_where_nothing_is_wrong_there_is_no_finding() {
    let report = Fixture::clean().report();
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert!(report.host.does_dma, "it is a host to which it all would matter");
    let copy: Vec<&String> = report.not_seen.iter().filter(|text| !text.contains("copy of a host")).collect();
    assert!(copy.is_empty(), "{copy:?}");
    assert_eq!(report.host.rdma[0].regions, Some(2));
    assert_eq!(report.host.rdma[0].on_demand_paging, Some(true));
    assert_eq!(report.host.processes, 2, "without threads of the kernel");
    assert_eq!(report.host.dma_processes[0].unit.as_deref(), Some("trainer.service"));
}

#[test]
fn each_planted_problem_is_found_and_nothing_else_is() {
    assert!(PLANTED.len() >= 20);
    for case in PLANTED {
        let found: BTreeSet<&str> = planted(case).ids().into_iter().collect();
        let besides = BESIDES.iter().find(|(id, _)| *id == case.0).map_or(&[][..], |(_, ids)| ids);
        let expected: BTreeSet<&str> = besides.iter().copied().chain([case.0]).collect();
        assert_eq!(found, expected, "{}", case.0);
    }
}

#[test]
fn every_entry_of_the_catalogue_is_planted_somewhere() {
    let planted: BTreeSet<&str> = PLANTED.iter().map(|(id, _)| *id).chain(["LH-MOUNT-TMPFS"]).collect();
    let all: BTreeSet<&str> = CATALOGUE.iter().map(|entry| entry.id).collect();
    assert_eq!(planted, all);
}

#[test]
fn tmpfs_is_judged_only_if_somebody_asks_for_it() {
    let host = Fixture::clean();
    fs::create_dir_all(host.root().join("dev/shm")).unwrap();
    let report = host.try_report(&["/dev/shm"]).unwrap();
    assert_eq!(report.findings[0].entry.id, "LH-MOUNT-TMPFS");
    assert_eq!(report.findings[0].subject, "/dev/shm");
}

#[test]
fn what_is_found_names_what_was_seen_and_a_command_that_can_be_pasted() {
    for case in PLANTED {
        for finding in planted(case).report().findings {
            assert!(!finding.subject.is_empty() && !finding.evidence.is_empty(), "{}", case.0);
            for command in finding.commands() {
                for name in ["{mount}", "{unit}", "{pid}", "{file}", "{loop}", "{device}", "{inode}"] {
                    assert!(!command.contains(name), "{}: {command}", case.0);
                }
                let parsed =
                    std::process::Command::new("bash").args(["-n", "-c", &command]).output().unwrap();
                assert!(parsed.status.success(), "{}: {command}", case.0);
            }
        }
    }
}

#[test]
fn the_output_is_80_columns_wide_and_without_colour_unless_it_is_wanted() {
    for case in PLANTED {
        let report = planted(case).report();
        let plain = text::text(&report, false);
        let longest = plain.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(longest.chars().count() <= 80, "{}: {longest}", case.0);
        assert!(!plain.contains('\u{1b}'), "{}", case.0);
        assert!(plain.lines().all(|line| line == line.trim_end()), "{}: spaces at the end", case.0);
        let coloured = text::text(&report, true);
        assert!(coloured.contains("\u{1b}["), "{}", case.0);
        assert_eq!(uncoloured(&coloured), plain, "{}", case.0);
    }
}

/// Without escape sequences `ESC [ .. m`.
fn uncoloured(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[test]
fn the_worst_comes_first_and_the_last_line_is_the_verdict() {
    let mut host = Fixture::clean();
    for id in ["LH-MOUNT-FUSE", "LH-MR-IN-FILE", "LH-LEASE-DISABLED"] {
        PLANTED.iter().find(|(other, _)| *other == id).unwrap().1(&mut host);
    }
    let text = text::text(&host.report(), false);
    let at = |id| text.find(id).unwrap_or_else(|| panic!("no {id} in {text}"));
    assert!(at("HIGH") < at("LH-MR-IN-FILE"));
    assert!(at("LH-MR-IN-FILE") < at("LH-LEASE-DISABLED"));
    assert!(at("LH-LEASE-DISABLED") < at("LH-MOUNT-FUSE"));
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("Findings: 1 high, 1 medium, 1 low."), "{last}");
    let clean = text::text(&Fixture::clean().report(), false);
    assert_eq!(clean.lines().last(), Some("No finding."));
}

#[test]
fn where_nothing_does_dma_what_matters_to_dma_is_low() {
    let mut host = Fixture::clean();
    PLANTED.iter().find(|(id, _)| *id == "LH-MOUNT-REFLINK").unwrap().1(&mut host);
    assert_eq!(host.report().findings[0].severity, Severity::Medium);
    fs::remove_dir_all(host.root().join("sys/class")).unwrap();
    fs::remove_dir_all(host.root().join(format!("proc/{TRAINER}"))).unwrap();
    let report = host.report();
    assert_eq!(report.findings[0].severity, Severity::Low);
    assert!(text::text(&report, false).contains("Nothing was seen here that does DMA"));
}

#[test]
fn the_sources_of_lease_breaks_are_listed_and_fstrim_is_none_of_them() {
    let mut host = Fixture::clean();
    for id in ["LH-SERVICE-SNAPSHOT", "LH-MOUNT-NETWORK", "LH-TRIM-LOOP"] {
        PLANTED.iter().find(|(other, _)| *other == id).unwrap().1(&mut host);
    }
    host.put("/proc/fs/nfsd/threads", "8\n");
    let report = host.report();
    let of = |what: &str| {
        let breaker = report.lease_breakers.iter().find(|breaker| breaker.what.contains(what));
        breaker.unwrap_or_else(|| panic!("no {what}: {:#?}", report.lease_breakers)).effect.name()
    };
    for (what, effect) in [
        ("open(2)", "breaks"),
        ("truncate(2)", "breaks"),
        ("unlink", "bypasses"),
        ("descriptors opened before", "bypasses"),
        ("1 process with files mapped", "bypasses"),
        ("snapper-timeline.timer", "bypasses"),
        ("/home (nfs4)", "bypasses"),
        ("loop1 on /data/disk.img", "bypasses"),
        ("the NFS server", "breaks"),
        ("logrotate: /var/log/apt/term.log", "breaks"),
        ("fstrim.timer", "neither"),
    ] {
        assert_eq!(of(what), effect, "{what}");
    }
}

#[test]
fn what_could_not_be_seen_is_said() {
    let mut host = Fixture::clean();
    host.refuse_regions(1);
    fs::remove_file(host.root().join("boot/config-6.12.43+deb13-amd64")).unwrap();
    host.mount("30 27 259:1 / /scratch rw - xfs /dev/nvme1n1 rw,attr2");
    host.answers("/scratch", json!({}));
    host.mount("31 27 0:50 / /home rw - nfs4 filer:/home rw");
    let not_seen = host.report().not_seen.join("\n");
    for part in [
        "memory regions of RDMA devices: the kernel refuses it",
        "the kernel's configuration",
        "whether /scratch shares blocks",
        "/home (nfs4): not touched",
    ] {
        assert!(not_seen.contains(part), "{part}: {not_seen}");
    }
}

#[test]
fn a_path_that_cannot_be_audited_is_refused_with_the_reason() {
    let host = Fixture::clean();
    for (path, reason) in [
        ("/nowhere", "cannot audit /nowhere: No such file or directory"),
        ("/proc/self", "is on proc, mounted on /proc, which has no files that DMA could go to"),
    ] {
        fs::create_dir_all(host.root().join("proc/self")).unwrap();
        let error = host.try_report(&[path]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_path_chooses_its_mount_and_one_that_hangs_is_a_finding() {
    let mut host = Fixture::clean();
    host.mount("30 27 0:50 / /home rw - nfs4 filer:/home rw");
    host.answers("/home/me/big", json!({"hangs": true}));
    let report = host.try_report(&["/home/me/big"]).unwrap();
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.entry.id, &*finding.subject)).collect();
    assert_eq!(found, [("LH-MOUNT-HUNG", "/home")]);
    let points: Vec<_> = report.host.mounts.iter().map(|mount| mount.point.as_path()).collect();
    assert_eq!(points, [Path::new("/home")]);
}

#[test]
fn the_json_document_has_all_of_the_report() {
    let mut host = Fixture::clean();
    for (_, plant) in PLANTED.iter().filter(|(id, _)| id.starts_with("LH-MOUNT") && *id != "LH-MOUNT-OVERLAY")
    {
        plant(&mut host);
    }
    let report = host.report();
    let document: Value = serde_json::from_str(&report.document().to_string()).unwrap();
    assert_eq!(document["version"], 1);
    let findings = document["findings"].as_array().unwrap();
    assert_eq!(findings.len(), report.findings.len());
    for finding in findings {
        for field in ["id", "severity", "subject", "title", "why", "source", "remedy"] {
            assert!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {finding}");
        }
        assert!(!finding["evidence"].as_array().unwrap().is_empty());
        assert!(!finding["commands"].as_array().unwrap().is_empty());
        assert_eq!(finding["accepted"], false);
    }
    assert_eq!(document["totals"]["medium"], report.count(Severity::Medium));
    let host = &document["host"];
    assert_eq!(host["kernel"]["release"], "6.12.43+deb13-amd64");
    assert_eq!(host["kernel"]["pins"][0]["does"], "refuses");
    assert_eq!(host["rdma"][0]["name"], "mlx5_0");
    assert_eq!(host["dma_processes"][0]["pinned_bytes"], 64 << 20);
    assert_eq!(host["leases"]["break_time_s"], 45);
    assert_eq!(host["capabilities"]["fanotify_permission"], true);
    assert!(host["mounts"].as_array().unwrap().iter().any(|mount| mount["path"] == "/data"));
    assert!(document["lease_breakers"][0]["effect"].is_string());
    assert!(document["not_seen"].is_array());
}

/// The properties that the schema of 2.1.0 knows, of the objects that we write; it allows no others.
fn has_only(value: &Value, known: &[&str]) {
    for key in value.as_object().unwrap().keys() {
        assert!(known.contains(&key.as_str()), "{key}: {value}");
    }
}

#[test]
fn the_sarif_log_is_as_the_standard_has_it() {
    let mut host = Fixture::clean();
    for (_, plant) in PLANTED.iter().take(1) {
        plant(&mut host);
    }
    let mut report = host.report();
    report.accept(&Baseline::of(&report.findings, None));
    let log: Value = serde_json::from_str(&sarif::log(&report).to_string()).unwrap();
    has_only(&log, &["$schema", "version", "runs"]);
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    has_only(run, &["tool", "invocations", "results"]);
    has_only(&run["tool"]["driver"], &["name", "version", "rules"]);
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    for rule in rules {
        has_only(rule, &["id", "shortDescription", "fullDescription", "help", "defaultConfiguration"]);
        for text in ["shortDescription", "fullDescription", "help"] {
            assert!(rule[text]["text"].as_str().is_some_and(|text| !text.is_empty()));
        }
        assert!(
            ["error", "warning", "note"].contains(&rule["defaultConfiguration"]["level"].as_str().unwrap())
        );
    }
    let invocation = &run["invocations"][0];
    has_only(invocation, &["executionSuccessful", "toolExecutionNotifications"]);
    assert_eq!(invocation["executionSuccessful"], true);
    for notification in invocation["toolExecutionNotifications"].as_array().unwrap() {
        assert!(notification["message"]["text"].is_string());
    }
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), report.findings.len());
    for result in results {
        has_only(
            result,
            &["ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints", "suppressions"],
        );
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(result["message"]["text"].is_string());
        assert!(result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"].is_string());
        assert!(result["partialFingerprints"].as_object().unwrap().values().all(Value::is_string));
        assert_eq!(result["suppressions"][0]["kind"], "external");
    }
}

#[test]
fn a_baseline_accepts_what_was_there_and_nothing_new() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baseline.json");
    let host = Fixture::clean();
    host.put("/proc/sys/fs/leases-enable", "0\n");
    let mut report = host.report();
    fs::write(&path, Baseline::of(&report.findings, None).text()).unwrap();
    report.accept(&Baseline::read(&path).unwrap());
    assert!(report.is_clean());
    assert!(text::text(&report, false).contains("No finding; 1 accepted by the baseline."));

    host.put("/proc/sys/fs/lease-break-time", "0\n");
    let mut report = host.report();
    report.accept(&Baseline::read(&path).unwrap());
    let open: Vec<&str> = report.open().map(|finding| finding.entry.id).collect();
    assert_eq!(open, ["LH-LEASE-BREAK-SHORT"]);

    host.put("/proc/sys/fs/leases-enable", "1\n");
    let mut report = host.report();
    report.accept(&Baseline::read(&path).unwrap());
    assert_eq!(report.accepted_and_gone[0].id, "LH-LEASE-DISABLED");
    assert!(text::text(&report, false).contains("ACCEPTED, AND NOT THERE ANY MORE"));
}

#[test]
fn a_baseline_that_is_written_anew_keeps_the_reasons_and_one_that_is_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baseline.json");
    let host = Fixture::clean();
    host.put("/proc/sys/fs/leases-enable", "0\n");
    let accepted =
        json!({"id": "LH-LEASE-DISABLED", "subject": "fs.leases-enable", "reason": "no leases here"});
    fs::write(&path, json!({"version": 1, "accepted": [accepted]}).to_string()).unwrap();
    let old = Baseline::read(&path).unwrap();
    let text = Baseline::of(&host.report().findings, Some(&old)).text();
    assert!(text.contains("no leases here"), "{text}");
    for (content, says) in [
        ("", "is no baseline"),
        ("{\"version\": 1}", "is no baseline"),
        ("{\"version\": 2, \"accepted\": []}", "is a baseline of version 2"),
    ] {
        fs::write(&path, content).unwrap();
        let error = Baseline::read(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(Baseline::read(&path).unwrap_err().to_string().contains("--write-baseline"));
}

#[test]
fn names_from_the_host_reach_neither_the_terminal_nor_the_shell_as_they_are() {
    let mut host = Fixture::clean();
    host.mount(r"30 27 0:51 / /x\033[2J\040$(reboot) rw - fuse.s3fs s3fs rw");
    host.answers("/x", json!({}));
    let report = host.report();
    let text = text::text(&report, false);
    assert!(!text.contains('\u{1b}'), "{text}");
    let commands = report.findings[0].commands();
    assert!(commands.iter().all(|command| !command.contains('\u{1b}')), "{commands:?}");
}

#[test]
fn a_long_path_does_not_make_the_lines_longer() {
    let host = Fixture::clean();
    let path = format!("/data/{}", "long/".repeat(60));
    host.maps_file(TRAINER, &format!("7f5000000000-7f5004000000 rw-s 00000000 103:0 11    {path}model.bin"));
    let text = text::text(&host.report(), false);
    let longest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
    assert!(longest.chars().count() <= 80, "{longest}");
}

/// The clean host with another kernel, and what a probe printed.
fn judged(release: &str, evidence: &str) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("probe.json");
    fs::write(&path, evidence).unwrap();
    let host = Fixture::clean();
    host.put("/proc/sys/kernel/osrelease", release);
    let options = Options { paths: Vec::new(), evidence: Some(Evidence::read(&path).unwrap()) };
    audit(host.host(), &options).unwrap()
}

#[test]
fn a_process_that_maps_files_and_does_no_dma_is_no_finding() {
    let host = Fixture::clean();
    host.maps_model(JOURNAL);
    assert!(host.report().is_clean());
}

#[test]
fn what_a_probe_measured_counts_for_more_than_the_version() {
    let probed = |release: &str, verdict: &str, note: &str| {
        let row = json!({"group": "pins", "id": "pin-shared", "verdict": verdict, "note": note});
        let document = json!({"place": {"kernel": release}, "hazards": [{"id": "pin-memfd"}, row]});
        judged(release, &document.to_string())
    };
    let has_finding =
        |report: &Report| report.findings.iter().any(|finding| finding.entry.id == "LH-KERNEL-FILE-PIN");
    // A distribution's 5.14 with the refusal carried back.
    let report = probed("5.14.0-600.el9.x86_64", "not-seen", "refused with EFAULT");
    assert!(!has_finding(&report), "{:#?}", report.findings);
    assert!(report.host.kernel.pins[0].basis.contains("probe.json"));
    assert!(has_finding(&probed("6.18.1", "seen", "accepted")));
    // On 6.1 io_uring refuses by itself what RDMA gets.
    let report = probed("6.1.0", "not-seen", "refused with EOPNOTSUPP");
    assert!(has_finding(&report));
    assert!(report.not_seen.iter().any(|text| text.contains("does not settle")), "{:?}", report.not_seen);
}

#[test]
fn a_probe_of_another_kernel_settles_nothing_and_one_that_is_none_is_refused() {
    let lines = concat!(
        r#"{"event": "place", "kernel": "6.5.0"}"#,
        "\n",
        r#"{"event": "row", "id": "pin-shared", "verdict": "seen", "note": ""}"#
    );
    let report = judged("6.12.1", lines);
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert!(report.not_seen.iter().any(|text| text.contains("it is of kernel 6.5.0, not of this one")));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("probe.json");
    for (content, says) in [("no JSON", "is not what"), ("{}", "names no kernel"), ("", "names no kernel")] {
        fs::write(&path, content).unwrap();
        let error = Evidence::read(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn thousands_of_processes_are_read_in_time() {
    let host = Fixture::clean();
    for pid in 10_000..13_000 {
        host.process(pid, "worker", 0, 0);
    }
    host.process(13_000, "qemu-system-x86", 0, 4096);
    host.link("/proc/13000/fd/20", "/dev/vfio/17");
    host.maps_model(13_000);
    let report = host.report();
    assert_eq!(report.host.processes, 3_003);
    assert_eq!(report.findings[0].entry.id, "LH-VFIO-FILE");
}

#[test]
fn who_waits_for_a_lease_is_named_and_how_to_find_the_file() {
    let host = planted(PLANTED.iter().find(|(id, _)| *id == "LH-LEASE-BREAKING").unwrap());
    let report = host.report();
    let finding = &report.findings[0];
    assert_eq!(finding.evidence[1], "waiting for it: trainer [4711]");
    assert!(finding.commands().contains(&"find / -xdev -inum 42".to_owned()), "{:?}", finding.commands());
}

#[test]
fn a_unit_whose_file_never_answers_is_said_and_holds_up_nothing() {
    use rustix::fs::{CWD, FileType, Mode};
    let host = Fixture::clean();
    host.unit("stuck.service", "", true);
    let file = host.root().join("usr/lib/systemd/system/stuck.service");
    fs::remove_file(&file).unwrap();
    // Nobody ever writes to it, so whoever opens it waits.
    rustix::fs::mknodat(CWD, &file, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let start = std::time::Instant::now();
    let report = host.report();
    assert!(start.elapsed() < std::time::Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(
        report.not_seen.iter().any(|text| text.contains("systemd and cron did not answer")),
        "{:?}",
        report.not_seen
    );
}

#[test]
fn a_loop_device_matters_only_to_the_filesystem_that_its_file_is_on() {
    let host = planted(PLANTED.iter().find(|(id, _)| *id == "LH-TRIM-LOOP").unwrap());
    fs::create_dir_all(host.root().join("data")).unwrap();
    let ids = |path| -> Vec<&str> {
        host.try_report(&[path]).unwrap().findings.iter().map(|finding| finding.entry.id).collect()
    };
    assert_eq!(ids("/data"), ["LH-TRIM-LOOP"]);
    assert_eq!(ids("/"), [""; 0]);
}
