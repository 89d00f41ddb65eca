//! Leasehold's own store in the same place, through the same: a remote writer holds a lease on all of a file and writes,
//! without a pause, while somebody else truncates, punches, clones, .. it.
//!
//! What must be true afterwards is what was promised: a commit that was answered with success is there, as if it had come
//! before the operation; nothing else of the writer's bytes is; and who lost the lease was told. Every other try, the
//! holder commits when it is told of the break; else it goes on writing until it is fenced.

use crate::server::Server;
use crate::server::settings::{PageKind, Settings};
use crate::size::Size;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use leasehold_client::{
    Access, AcquireOptions, ByteRange, CallError, Client, CommitError, Lease, LeaseState, Reason,
    ScrubOptions, Session, Want, WriteError, crc32c, proto,
};
use leasehold_host::probe::{
    Content, Event, Group, Mark, PAGE_BYTES, Row, Stop, Tally, Verdict, bytes, contents,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio_stream::StreamExt as _;

const PAGES: usize = 64;
const BYTES: usize = PAGES * PAGE_BYTES;
/// What the holder writes at once.
const PIECE: usize = 16 * PAGE_BYTES;
/// How long a holder that does not answer keeps its lease.
const GRACE_MS: u64 = 100;

const VICTIM: &str = "/victim";
const DONOR: &str = "/donor";
const COPY: &str = "/copy";

/// What somebody else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Sync,
    Truncate,
    Punch,
    Zero,
    Collapse,
    Write,
    CloneOnto,
    Clone,
    Copy,
}

impl Operation {
    const ALL: [Operation; 9] = [
        Operation::Sync,
        Operation::Truncate,
        Operation::Punch,
        Operation::Zero,
        Operation::Collapse,
        Operation::Write,
        Operation::CloneOnto,
        Operation::Clone,
        Operation::Copy,
    ];

    /// The same ids as those of the rows without us.
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Operation::Sync => ("write-after-clean", "writeback and fsync"),
            Operation::Truncate => ("truncate", "truncate and extend"),
            Operation::Punch => ("punch", "punch hole"),
            Operation::Zero => ("zero", "zero range"),
            Operation::Collapse => ("collapse", "collapse range"),
            Operation::Write => ("direct-write", "another's write"),
            Operation::CloneOnto => ("clone-onto", "clone onto the file"),
            Operation::Clone => ("clone", "clone of the file"),
            Operation::Copy => ("copy", "copy of the file"),
        }
    }

    /// Whether it takes the lease away; the others leave the holder alone.
    fn breaks(self) -> bool {
        !matches!(self, Operation::Sync | Operation::Clone | Operation::Copy)
    }

    async fn make(self, client: &Client) -> Result<(), CallError> {
        let all = range(BYTES);
        match self {
            Operation::Sync => client.sync(VICTIM).await,
            Operation::Truncate => {
                client.truncate(VICTIM, 0).await?;
                client.truncate(VICTIM, BYTES as u64).await
            }
            Operation::Punch => client.punch(VICTIM, all).await,
            Operation::Zero => client.zero(VICTIM, all).await,
            Operation::Collapse => {
                client.collapse(VICTIM, range(BYTES / 2)).await?;
                client.truncate(VICTIM, BYTES as u64).await
            }
            Operation::Write => client.write(VICTIM, 0, content(OTHER)).await.map(drop),
            Operation::CloneOnto => client.clone_file(DONOR, VICTIM, true).await.map(drop),
            Operation::Clone => client.clone_file(VICTIM, COPY, true).await.map(drop),
            Operation::Copy => {
                client.create(COPY).await?;
                client.copy_range(VICTIM, range(BYTES), COPY, 0).await?;
                client.sync(COPY).await
            }
        }
    }

    /// What the victim has to hold, if `base` wrote all of it last before the operation.
    fn expected(self, base: Mark) -> Vec<Content> {
        let of = |mark, first: u32| (first..).map(move |number| Content::Marked(mark, number));
        match self {
            Operation::Truncate | Operation::Punch | Operation::Zero => vec![Content::Zeros; PAGES],
            Operation::Collapse => {
                let half = PAGES / 2;
                of(base, half as u32).take(half).chain(std::iter::repeat_n(Content::Zeros, half)).collect()
            }
            Operation::Write | Operation::CloneOnto => of(OTHER, 0).take(PAGES).collect(),
            Operation::Sync | Operation::Clone | Operation::Copy => of(base, 0).take(PAGES).collect(),
        }
    }
}

const OLD: Mark = Mark(1);
const REMOTE: Mark = Mark(2);
const OTHER: Mark = Mark(3);

fn range(length: usize) -> ByteRange {
    ByteRange::at(0, length as u64).expect("not empty")
}

fn content(mark: Mark) -> Bytes {
    bytes(mark, 0, PAGES).into()
}

/// How the holder's lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Committed,
    Told,
}

/// What became of the tries of one operation.
#[derive(Debug, Default)]
struct Score {
    tries: u64,
    broken: u64,
    committed: u64,
    told: u64,
    /// On disk, against what was promised.
    tally: Tally,
}

/// Tries them all.
pub(super) async fn run(
    directory: &Path,
    tries: u32,
    stop: &Stop,
    tell: &(dyn Fn(Event) + Sync),
) -> anyhow::Result<()> {
    let directory = directory.join("store");
    std::fs::create_dir(&directory).context("cannot make a directory for a store")?;
    let any = "127.0.0.1:0".parse().context("an address")?;
    let settings = Settings {
        listen: any,
        data: any,
        metrics: any,
        arena: Size(32 << 20),
        pages: PageKind::Normal,
        grace_ms: GRACE_MS,
        ..Settings::default()
    };
    tell(Event::Trying { what: "Leasehold's own store".to_owned() });
    let server = Server::start(&directory, &settings).await.context("cannot start a store")?;
    let client = Client::connect(&leasehold_client::Server::Unix(server.socket().to_owned())).await?;
    let stage = Stage { files: directory.join("files"), session: Session::open(&client).await?, client };
    let played = stage.play(tries, stop, tell).await;
    stage.session.close().await;
    server.stop().await.context("cannot stop the store")?;
    played
}

/// The store, the holder's session, and somebody else's connection.
struct Stage {
    files: PathBuf,
    session: Session,
    client: Client,
}

impl Stage {
    async fn play(&self, tries: u32, stop: &Stop, tell: &(dyn Fn(Event) + Sync)) -> anyhow::Result<()> {
        self.fill(DONOR, OTHER).await?;
        for operation in Operation::ALL {
            let (id, what) = operation.name();
            tell(Event::Trying { what: format!("Leasehold's own store: {what}") });
            let mut score = Score::default();
            let mut refused = None;
            for number in 0..tries {
                if stop.is_told() {
                    break;
                }
                refused = self.attempt(operation, number % 2 == 0, &mut score).await?;
                if refused.is_some() {
                    break;
                }
            }
            let row = |verdict| Row::new(Group::Store, id, what, verdict);
            tell(Event::Row(match refused {
                Some(why) => row(Verdict::NotApplicable { why }),
                None => row(Verdict::counted(score.broken, score.tries, "tries")).with(score.note(operation)),
            }));
            stop.check()?;
        }
        tell(Event::Row(self.scrub().await?));
        Ok(())
    }

    /// One try; says why if the store cannot do the operation here.
    async fn attempt(
        &self,
        operation: Operation,
        answers: bool,
        score: &mut Score,
    ) -> anyhow::Result<Option<String>> {
        let _ = self.client.remove(COPY).await;
        self.fill(VICTIM, OLD).await?;
        let want = Want { path: VICTIM.to_owned(), range: range(BYTES), access: Access::Overwrite };
        let lease = self.session.acquire(&[want], AcquireOptions::default()).await?.remove(0);
        let (writing, made) = (Notify::new(), AtomicBool::new(false));
        let breaker = async {
            // Only once the holder's bytes are under way.
            writing.notified().await;
            let answer = operation.make(&self.client).await;
            let taken = if matches!(operation, Operation::Clone | Operation::Copy) && answer.is_ok() {
                self.on_disk(COPY).await.map(Some)
            } else {
                Ok(None)
            };
            made.store(true, Ordering::Release);
            (answer, taken)
        };
        let (end, (answer, taken)) = tokio::join!(hold(lease, answers, &writing, &made), breaker);
        match answer {
            Ok(()) => {}
            Err(error) if error.reason == Reason::Invalid => return Ok(Some(error.message)),
            Err(error) => return Err(error).with_context(|| format!("{} failed", operation.name().1)),
        }
        let end = end?;
        self.client.sync(VICTIM).await?;
        let base = if end == End::Committed { REMOTE } else { OLD };
        let mut tally = count(self.on_disk(VICTIM).await?, operation.expected(base));
        if taken?.is_some() {
            // The holder has committed since; the copy has the bytes of when it was taken.
            tally.add(&count(self.on_disk(COPY).await?, Operation::Copy.expected(OLD)));
        }
        score.tries += 1;
        // A break of a lease whose holder was not told would have let `hold` go on for ever: it has ended.
        score.broken += u64::from(tally.wrong() > 0);
        score.committed += u64::from(end == End::Committed);
        score.told += u64::from(end == End::Told);
        score.tally.add(&tally);
        ensure!(operation.breaks() || end == End::Committed, "a lease was broken by what breaks none");
        Ok(None)
    }

    /// A file with known content, durable.
    async fn fill(&self, path: &str, mark: Mark) -> anyhow::Result<()> {
        self.client.create(path).await?;
        self.client.write(path, 0, content(mark)).await?;
        Ok(self.client.sync(path).await?)
    }

    /// The file as it is on the disk, by nothing of ours.
    async fn on_disk(&self, path: &str) -> anyhow::Result<Vec<Content>> {
        let path = self.files.join(path.trim_start_matches('/'));
        Ok(tokio::task::spawn_blocking(move || contents(&path, PAGES)).await??)
    }

    /// Does every checksum of the store still match?
    async fn scrub(&self) -> anyhow::Result<Row> {
        let mut items = Box::pin(self.client.scrub(None, ScrubOptions::default()).await?);
        let (mut files, mut blocks, mut wrong) = (0, 0, 0);
        while let Some(item) = items.next().await {
            if let proto::scrub_response::Item::File(file) = item? {
                files += 1;
                blocks += file.blocks;
                wrong += file.mismatches.len() as u64 + u64::from(!file.error.is_empty());
            }
        }
        let row = Row::new(
            Group::Store,
            "checksums",
            "checksums of the store break",
            Verdict::counted(wrong, blocks, "blocks"),
        );
        Ok(row.with(format!("{files} files scrubbed")))
    }
}

impl Score {
    fn note(&self, operation: Operation) -> String {
        if self.broken > 0 {
            return self.tally.to_string();
        }
        if operation.breaks() {
            format!("{} committed before it, {} fenced and told", self.committed, self.told)
        } else {
            format!("{} committed after it; no lease broken", self.committed)
        }
    }
}

fn count(found: Vec<Content>, expected: Vec<Content>) -> Tally {
    let mut tally = Tally::default();
    for (found, expected) in found.into_iter().zip(expected) {
        tally.count(found, expected);
    }
    tally
}

/// The remote writer: writes all of the range, again and again, until the lease is over or, if it answers, until it is told
/// to let go; and commits if the operation left it alone.
async fn hold(lease: Lease, answers: bool, writing: &Notify, made: &AtomicBool) -> anyhow::Result<End> {
    let content = content(REMOTE);
    let crc = crc32c(&content);
    loop {
        // Before the pass: what is committed was written whole by it.
        let done = made.load(Ordering::Acquire);
        for at in (0..BYTES).step_by(PIECE) {
            match lease.write(at as u64, content.slice(at..at + PIECE)).await {
                Ok(()) => {}
                Err(WriteError::Revoked(_)) => return Ok(End::Told),
                Err(error) => return Err(error.into()),
            }
        }
        writing.notify_one();
        let told = match lease.state() {
            LeaseState::Revoked(_) => return Ok(End::Told),
            LeaseState::Breaking(_) => answers,
            LeaseState::Live => false,
        };
        if told || done {
            return match lease.commit_with(Some(crc)).await {
                Ok(_) => Ok(End::Committed),
                Err(CommitError::Revoked(_)) => Ok(End::Told),
                Err(error) => Err(error.into()),
            };
        }
        tokio::task::yield_now().await;
    }
}
