//! The commands against a server: what they print, and the codes they end with.

mod harness;

use harness::{Process, Store, leasehold, pattern};
use std::io::{Read, Write};
use std::process::{Output, Stdio};

/// A server in a process of its own, and the command on its socket.
struct Shell {
    server: Process,
    directory: tempfile::TempDir,
}

impl Shell {
    async fn start() -> Shell {
        let directory = harness::directory();
        let server = Process::start(directory.path()).await;
        Shell { server, directory }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        leasehold().arg("--socket").arg(&self.server.socket).args(arguments).output().expect("a process")
    }

    /// What it prints, if it ends well.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The code it ends with, and what it says about that.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let Output { status, stderr, .. } = self.run(arguments);
        (status.code().expect("it was not killed"), String::from_utf8(stderr).expect("UTF-8"))
    }

    /// A local file.
    fn local(&self, name: &str, content: &[u8]) -> String {
        let path = self.directory.path().with_file_name(format!(
            "{}-{name}",
            self.directory.path().file_name().expect("a name").to_string_lossy()
        ));
        std::fs::write(&path, content).expect("a local file");
        path.to_str().expect("UTF-8").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_is_what_is_got_whatever_its_length_and_the_chunks() {
    let shell = Shell::start().await;
    for (length, chunk) in
        [(0, "4MiB"), (1, "4MiB"), (100_000, "30000"), (3 << 20, "1MiB"), (1_000_001, "4097")]
    {
        let content = pattern(length as u64, length);
        let (source, back) = (shell.local("source", &content), shell.local("back", b"old"));
        let said = shell.ok(&["put", &source, "/file", "--chunk", chunk, "--depth", "5"]);
        assert!(said.contains("durable"), "{said}");
        shell.ok(&["get", "/file", &back, "--chunk", chunk]);
        assert!(std::fs::read(&back).unwrap() == content, "{length} bytes in chunks of {chunk}");
        std::fs::remove_file(source).unwrap();
        std::fs::remove_file(back).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_and_output_are_files_too_and_a_longer_file_is_cut() {
    let shell = Shell::start().await;
    for content in [pattern(1, 300_000), pattern(2, 70_000)] {
        let mut put = leasehold()
            .arg("--socket")
            .arg(&shell.server.socket)
            .args(["put", "-", "/file", "--chunk", "64KiB"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        put.stdin.take().unwrap().write_all(&content).unwrap();
        assert!(put.wait().unwrap().success());
        assert_eq!(shell.run(&["get", "/file", "-"]).stdout, content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_listed_moved_and_removed() {
    let shell = Shell::start().await;
    let source = shell.local("source", &pattern(1, 10_000));
    shell.ok(&["mkdir", "-p", "/a/b"]);
    shell.ok(&["mkdir", "-p", "/a/b"]);
    shell.ok(&["put", &source, "/a/b/file"]);
    std::fs::remove_file(source).unwrap();
    assert_eq!(shell.ok(&["ls", "/a"]), "b/\n");
    assert_eq!(shell.ok(&["ls", "/a/b"]), "file\n");
    let listed: serde_json::Value = serde_json::from_str(&shell.ok(&["ls", "--json", "/a/b"])).unwrap();
    assert_eq!((&listed[0]["path"], &listed[0]["size"]), (&"/a/b/file".into(), &10_000.into()));

    shell.ok(&["mv", "/a/b/file", "/moved"]);
    shell.ok(&["truncate", "/moved", "--size", "8K"]);
    shell.ok(&["punch", "/moved", "--offset", "0", "--length", "4K"]);
    let mut expected = pattern(1, 8192).to_vec();
    expected[..4096].fill(0);
    assert_eq!(shell.run(&["get", "/moved", "-"]).stdout, expected);
    assert!(shell.ok(&["stat", "/moved"]).contains("size      8192 (8.00 KiB)"));
    assert!(shell.ok(&["scrub"]).contains("every checksum matches"));
    shell.ok(&["rm", "/moved", "/a/b"]);
    assert_eq!(shell.ok(&["ls", "/"]), "a/\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_cloned_copied_linked_zeroed_and_evicted() {
    let shell = Shell::start().await;
    let content = pattern(1, 20_000);
    let source = shell.local("source", &content);
    shell.ok(&["put", &source, "/file"]);
    std::fs::remove_file(source).unwrap();
    shell.ok(&["mkdir", "/directory"]);

    assert!(shell.ok(&["clone", "/file", "/directory"]).starts_with("cloned; the blocks "));
    assert_eq!(shell.run(&["get", "/directory/file", "-"]).stdout, content);
    let (code, says) = shell.fails(&["clone", "/file", "/directory/file"]);
    assert_eq!((code, says.contains("--force")), (1, true), "{says}");
    shell.ok(&["zero", "/file", "--offset", "4K", "--length", "1K"]);
    shell.ok(&["clone", "--force", "/file", "/directory/file"]);
    let mut zeroed = content.to_vec();
    zeroed[4096..5120].fill(0);
    assert_eq!(shell.run(&["get", "/directory/file", "-"]).stdout, zeroed);

    assert_eq!(shell.ok(&["cp", "/file", "/copy"]), "19.5 KiB copied, durable\n");
    assert_eq!(shell.run(&["get", "/copy", "-"]).stdout, zeroed);
    shell.ok(&["cp", "/file", "/copy", "--offset", "4K", "--length", "1000", "--to-offset", "7"]);
    let mut expected = zeroed.clone();
    expected[7..1007].fill(0);
    assert_eq!(shell.run(&["get", "/copy", "-"]).stdout, expected);
    shell.ok(&["truncate", "/file", "--size", "100"]);
    shell.ok(&["cp", "/file", "/copy"]);
    assert_eq!(
        shell.run(&["get", "/copy", "-"]).stdout,
        content[..100],
        "a whole copy is as long as its source"
    );
    assert_eq!(shell.fails(&["cp", "/missing", "/new"]).0, 3);
    assert_eq!(shell.fails(&["stat", "/new"]).0, 3, "nothing is created for nothing");

    shell.ok(&["ln", "/copy", "/directory"]);
    shell.ok(&["ln", "-s", "no such \x1b[31mplace", "/link"]);
    assert!(shell.ok(&["ls", "-l", "/"]).contains("link -> no such \\u{1b}[31mplace\n"));
    assert!(shell.ok(&["stat", "/directory/copy"]).contains("links     2"));
    shell.ok(&["mv", "/link", "/directory/"]);
    assert_eq!(shell.ok(&["ls", "/directory"]), "copy\nfile\nlink\n");
    assert!(shell.ok(&["evict", "/copy", "/file"]).contains("of memory are free now"));

    let (code, says) = shell.fails(&["rm", "/file", "/missing", "/copy", "/directory"]);
    assert_eq!(code, 3, "{says}");
    assert!(
        says.contains("leasehold: /missing does not exist") && says.contains("2 names were not removed"),
        "{says}"
    );
    assert_eq!(shell.ok(&["ls", "/"]), "directory/\n", "what could be removed was");
    let (code, says) = shell.fails(&["scrub", "--adopt"]);
    assert_eq!((code, says.contains("--all")), (2, true), "{says}");
    assert!(shell.ok(&["scrub", "--adopt", "--all"]).contains("every checksum matches"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_too_long_is_refused_in_words_and_one_with_control_characters_is_shown_escaped() {
    let shell = Shell::start().await;
    let (code, says) = shell.fails(&["stat", &format!("/{}", "x".repeat(50_000))]);
    assert_eq!((code, says.contains("too long; names end at 255 bytes")), (2, true), "{says}");
    let source = shell.local("source", b"x");
    shell.ok(&["put", &source, "/a\x1b[2J\nb"]);
    std::fs::remove_file(source).unwrap();
    assert_eq!(shell.ok(&["ls", "/"]), "a\\u{1b}[2J\\nb\n");
    let (_, says) = shell.fails(&["mkdir", "/a\x1b[2J\nb"]);
    assert!(says.contains("\\u{1b}[2J\\nb exists already") && !says.contains('\x1b'), "{says:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resident_lease_is_held_synced_and_lost_at_the_command_line() {
    let shell = Shell::start().await;
    let source = shell.local("source", &pattern(1, 100_000));
    shell.ok(&["put", &source, "/file"]);
    std::fs::remove_file(source).unwrap();
    let mut hold = leasehold();
    hold.arg("--socket").arg(&shell.server.socket);
    hold.args(["hold", "/file", "--length", "64K", "--update", "--write", "--sync", "5ms"]);
    let mut hold = hold.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut says = std::io::BufReader::new(hold.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(" synced 0..64KiB in ") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut says, &mut line).unwrap() > 0, "it has ended");
    }
    let client = harness::connect(&shell.server.socket).await;
    while harness::content(&client, "/file").await[..65_536] != [0xA5; 65_536] {
        assert!(hold.try_wait().unwrap().is_none(), "it has ended");
    }
    shell.ok(&["truncate", "/file", "--size", "0"]);
    assert_eq!(hold.wait().unwrap().code(), Some(4));
    let mut rest = String::new();
    says.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("wants to truncate to 0"), "{rest}");
    assert!(shell.ok(&["status"]).contains("breaks    1 since the start"));
    assert!(shell.ok(&["scrub"]).contains("every checksum matches"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_failure_has_its_code_and_says_what_to_do() {
    let shell = Shell::start().await;
    let (code, says) = shell.fails(&["get", "/missing", "-"]);
    assert_eq!(
        (code, says.as_str()),
        (
            3,
            "leasehold: /missing does not exist, or a directory on the way to it; check the name, or make it first\n"
        )
    );
    let (code, says) = shell.fails(&["put", "/missing/local", "/file"]);
    assert_eq!((code, says.contains("/missing/local")), (3, true), "{says}");
    shell.ok(&["mkdir", "/directory"]);
    assert_eq!(shell.fails(&["mkdir", "/directory"]).0, 1);
    assert_eq!(shell.fails(&["ls", "relative"]).0, 2);

    let holder = harness::connect(&shell.server.socket).await;
    let holder = leasehold_client::Session::open(&holder).await.unwrap();
    holder.client().create("/file").await.unwrap();
    let _lease = harness::lease(&holder, "/file", 0, 4096).await;
    let (code, says) = shell.fails(&["hold", "/file", "--wait", "10ms"]);
    assert_eq!(code, 4, "{says}");
    let leases: serde_json::Value = serde_json::from_str(&shell.ok(&["leases", "--json", "/file"])).unwrap();
    assert_eq!(leases[0]["holder"]["pid"], std::process::id());
    assert_eq!(leases[0]["holder"]["verified"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_changed_behind_our_back_is_found_with_code_5() {
    let shell = Shell::start().await;
    let source = shell.local("source", &pattern(1, 20_000));
    shell.ok(&["put", &source, "/file"]);
    std::fs::remove_file(source).unwrap();
    let path = shell.directory.path().join("files/file");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let output = shell.run(&["scrub"]);
    let says = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(5), "{says}");
    assert!(says.contains("/file: bytes 4096..8192: committed 0x"), "{says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_lease_is_broken_stops_and_says_by_whom_and_with_retry_goes_on() {
    let shell = Shell::start().await;
    let content = pattern(3, 4 << 20);
    let source = shell.local("source", &content);
    shell.ok(&["put", &source, "/file"]);
    for retry in [false, true] {
        let mut put = leasehold();
        put.arg("--socket").arg(&shell.server.socket);
        put.args(["put", &source, "/file", "--chunk", "1MiB", "--depth", "2", "--rate", "4MiB"]);
        put.args(retry.then_some("--retry"));
        let mut put = put.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let client = harness::connect(&shell.server.socket).await;
        while client.leases(Some("/file")).await.unwrap().iter().filter(|lease| lease.state == "live").count()
            < 2
        {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        client.punch("/file", harness::range(0, 4 << 20)).await.unwrap();
        let mut says = String::new();
        put.stderr.take().unwrap().read_to_string(&mut says).unwrap();
        let code = put.wait().unwrap().code();
        assert!(says.contains(&format!("(pid {}, ", std::process::id())), "{says}");
        if retry {
            assert_eq!(code, Some(0), "{says}");
            assert_eq!(shell.run(&["get", "/file", "-"]).stdout, content);
        } else {
            assert_eq!(code, Some(4), "{says}");
            assert!(says.contains("stopped: the lease on"), "{says}");
        }
    }
    std::fs::remove_file(source).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_server_with_code_0_even_while_somebody_watches() {
    let mut shell = Shell::start().await;
    let client = shell.server.client().await;
    let _watching = client.watch().await.unwrap();
    let _session = leasehold_client::Session::open(&client).await.unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(shell.server.child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(shell.server.child.wait().unwrap().code(), Some(0));
    assert!(!shell.server.socket.exists(), "the socket's name is removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_page_counts_and_names_every_gauge_once() {
    let store = Store::start().await;
    let session = store.session().await;
    harness::fill(&session, "/a", pattern(1, 5000)).await;
    let page = store.metrics().await;
    assert!(page.starts_with("HTTP/1.0 200 OK"), "{page}");
    for line in
        ["leasehold_committed_total 1", "leasehold_sessions 1", "leasehold_commit_took_seconds_count 1"]
    {
        assert!(page.lines().any(|found| found == line), "{line}: {page}");
    }
    assert!(page.trim_end().ends_with("# EOF"), "{page}");
}
