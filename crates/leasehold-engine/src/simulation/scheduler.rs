//! Tasks, one of which runs at a time, and the time that passes for them.
//!
//! ```text
//!            picked by the seed                  done
//!   ready ----------------------> running -----------------> gone
//!     ^                             | parks on a key, maybe until some time
//!     `--- woken, or timed out --- parked
//! ```
//! Invariant: all that happens is a function of the seed and of what the tasks do. So nothing here depends on an address, a
//! clock, or a hash with a random key.

use super::Random;
use crate::sync::{self, Here};
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr;
use std::rc::Rc;
use std::sync::{LazyLock, Once};
use std::time::{Duration, Instant, SystemTime};

const STACK_BYTES: usize = 256 << 10;

/// A run that takes longer than this has got stuck, in its own time or in steps.
const STEPS_MAX: u64 = 2_000_000;
const LIMIT: Duration = Duration::from_secs(3600);

/// A task that was passed over may find that so much time has passed.
const LATE_US: u64 = 3_000;

pub(super) type TaskId = u64;

/// What a task waits for: an address, or any other number that is nobody else's.
pub(super) type Key = usize;

/// Nobody wakes what waits for this.
pub(super) const NOTHING: Key = 0;

/// Why a task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Woken,
    TimedOut,
}

type Stepped = Coroutine<Wake, (), (), DefaultStack>;

struct Task {
    name: String,
    state: State,
    /// `None` while it runs.
    coroutine: Option<Stepped>,
    yielder: *const Yielder<Wake, ()>,
    /// Where it last waited.
    place: &'static Location<'static>,
    /// As if it had a thread of its own.
    here: Here,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready(Wake),
    Parked { key: Key, until_us: Option<u64> },
}

/// See the module.
pub(super) struct Scheduler {
    seed: u64,
    began: Instant,
    random: RefCell<Random>,
    now_us: Cell<u64>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    next_task: Cell<TaskId>,
    running: Cell<TaskId>,
    steps: Cell<u64>,
    digest: Cell<u64>,
    /// How often the clock of the wall was looked at, if it jumps each time.
    jumps: Cell<Option<u64>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Scheduler>>> = const { RefCell::new(None) };
    /// Where and how the last simulation failed.
    static FAILED: RefCell<String> = const { RefCell::new(String::new()) };
    /// Stacks of tasks that are gone, to be used again.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// What a run came to.
pub(crate) struct Outcome<T> {
    pub(crate) value: T,
    /// How often a task was picked.
    pub(crate) steps: u64,
    /// How much time passed in it.
    pub(crate) time: Duration,
    /// Of all that happened: equal for two runs of one seed.
    pub(crate) digest: u64,
}

/// [`try_simulate`], where a failure is a panic.
pub(crate) fn simulate<T: 'static>(seed: u64, main: impl FnOnce() -> T + 'static) -> Outcome<T> {
    try_simulate(seed, main).unwrap_or_else(|failed| panic!("{failed}"))
}

/// Runs `main` and every task that it starts, until all have ended. The same happens for the same seed. The error: where and
/// how a task panicked, or that none could go on.
pub(crate) fn try_simulate<T: 'static>(
    seed: u64,
    main: impl FnOnce() -> T + 'static,
) -> Result<Outcome<T>, String> {
    assert!(current().is_none(), "a simulation within one");
    keep_what_panics_say();
    let run = AssertUnwindSafe(|| run(seed, main));
    // What it leaves is never looked at.
    catch_unwind(run).map_err(|_| FAILED.take())
}

fn run<T: 'static>(seed: u64, main: impl FnOnce() -> T + 'static) -> Outcome<T> {
    let scheduler = Rc::new(Scheduler {
        seed,
        began: Instant::now(),
        random: RefCell::new(Random::new(seed)),
        now_us: Cell::new(0),
        tasks: RefCell::default(),
        next_task: Cell::new(1),
        running: Cell::new(0),
        steps: Cell::new(0),
        digest: Cell::new(0xCBF2_9CE4_8422_2325),
        jumps: Cell::new(None),
    });
    CURRENT.set(Some(Rc::clone(&scheduler)));
    let _ended = Ended(Rc::clone(&scheduler));
    let value = Rc::new(Cell::new(None));
    let result = Rc::clone(&value);
    scheduler.spawn("main", Box::new(move || result.set(Some(main()))));
    scheduler.run();
    Outcome {
        value: value.take().expect("main has ended"),
        steps: scheduler.steps.get(),
        time: Duration::from_micros(scheduler.now_us.get()),
        digest: scheduler.digest.get(),
    }
}

/// The end of a simulation, also by a panic.
struct Ended(Rc<Scheduler>);

impl Drop for Ended {
    fn drop(&mut self) {
        CURRENT.set(None);
        sync::swap_here(&mut Here::default());
        for (_, task) in std::mem::take(&mut *self.0.tasks.borrow_mut()) {
            // To unwind it would run the engine's destructors out of order, after the failure that matters.
            std::mem::forget(task.coroutine);
        }
    }
}

/// The simulation that this is a part of.
pub(super) fn current() -> Option<Rc<Scheduler>> {
    CURRENT.with_borrow(Option::clone)
}

/// Adds to what the run is told apart by.
pub(crate) fn note(what: u64) {
    if let Some(scheduler) = current() {
        scheduler.note(what);
    }
}

/// From now on the clock of the wall jumps by decades, forwards and backwards, whenever somebody looks at it. What else happens
/// is not changed by that.
pub(super) fn jump_the_clock() {
    current().expect("a simulation").jumps.set(Some(0));
}

/// How often somebody has looked at the clock since then.
pub(super) fn jumps() -> u64 {
    current().and_then(|scheduler| scheduler.jumps.get()).unwrap_or(0)
}

/// Lets others go first, or not, and time pass, or not. Nothing outside a simulation.
pub(crate) fn dawdle() {
    if let Some(scheduler) = current() {
        scheduler.dawdle();
    }
}

/// Whether something happens that happens once in `times` times; never outside a simulation, nor for 0.
pub(crate) fn chance(times: u64) -> bool {
    times > 0 && current().is_some_and(|scheduler| scheduler.random(|random| random.once_in(times)))
}

/// Any number below `end`; 0 outside a simulation.
pub(crate) fn below(end: u64) -> u64 {
    current().map_or(0, |scheduler| scheduler.random(|random| random.below(end)))
}

/// Tells people what happens, if `LEASEHOLD_SIM_TRACE` is set.
pub(crate) fn trace(what: impl FnOnce() -> String) {
    static TRACES: LazyLock<bool> = LazyLock::new(|| std::env::var_os("LEASEHOLD_SIM_TRACE").is_some());
    if *TRACES && let Some(scheduler) = current() {
        eprintln!("{}: {}", scheduler.place(), what());
    }
}

fn keep_what_panics_say() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Some(scheduler) = current() {
                let what = panic.payload_as_str().unwrap_or("no message");
                return FAILED.set(format!("{}: {what}", scheduler.place()));
            }
            before(panic);
        }));
    });
}

impl Scheduler {
    pub(super) fn now(&self) -> Instant {
        self.began + Duration::from_micros(self.now_us.get())
    }

    pub(super) fn wall(&self) -> SystemTime {
        const DECADE: u64 = 315_576_000;
        let decades = match self.jumps.get() {
            None => 5,
            Some(jumps) => {
                self.jumps.set(Some(jumps + 1));
                // Before 1970, too.
                [5, 9, 2, 30, 0, 5, 1][jumps as usize % 7]
            }
        };
        let wall = SystemTime::UNIX_EPOCH + Duration::from_micros(self.now_us.get());
        if decades == 0 {
            wall - Duration::from_secs(DECADE)
        } else {
            wall + Duration::from_secs(decades * DECADE)
        }
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.random.borrow_mut())
    }

    pub(super) fn running(&self) -> TaskId {
        self.running.get()
    }

    fn note(&self, what: u64) {
        self.digest.set((self.digest.get() ^ what).wrapping_mul(0x0100_0000_01B3));
    }

    fn place(&self) -> String {
        let running = self.running.get();
        let tasks = self.tasks.try_borrow().ok();
        let name = tasks.and_then(|tasks| tasks.get(&running).map(|task| task.name.clone()));
        let (seed, step) = (self.seed, self.steps.get());
        format!("seed {seed}, step {step}, {} us, task {name:?} ({running})", self.now_us.get())
    }

    pub(super) fn spawn(self: &Rc<Self>, name: &str, work: Box<dyn FnOnce()>) -> TaskId {
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        let stack = STACKS.with_borrow_mut(Vec::pop);
        let stack =
            stack.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("address space for a stack"));
        let scheduler = Rc::clone(self);
        let coroutine = Coroutine::with_stack(stack, move |yielder: &Yielder<Wake, ()>, _| {
            scheduler.tasks.borrow_mut().get_mut(&id).expect("it runs").yielder = yielder;
            drop(scheduler);
            work();
        });
        let state = State::Ready(Wake::Woken);
        let task = Task {
            name: name.to_owned(),
            state,
            coroutine: Some(coroutine),
            yielder: ptr::null(),
            place: Location::caller(),
            here: Here::default(),
        };
        self.tasks.borrow_mut().insert(id, task);
        id
    }

    /// Whether the task has ended.
    pub(super) fn is_gone(&self, task: TaskId) -> bool {
        !self.tasks.borrow().contains_key(&task)
    }

    /// What those wait for who wait until the task ends.
    pub(super) fn end_of(task: TaskId) -> Key {
        // Odd, so no address of anything that is waited for.
        task as Key * 2 + 1
    }

    /// The running task waits until the key is woken, or the time has come.
    #[track_caller]
    pub(super) fn park(&self, key: Key, until: Option<Instant>) -> Wake {
        let until_us = until.map(|until| until.saturating_duration_since(self.began).as_micros() as u64);
        self.suspend(State::Parked { key, until_us })
    }

    #[track_caller]
    pub(super) fn sleep(&self, duration: Duration) {
        self.park(NOTHING, Some(self.now() + duration));
    }

    /// The running task lets others go first, maybe.
    pub(super) fn may_yield(&self, once_in: u64) {
        // What unwinds must not be left half way.
        if !std::thread::panicking() && self.random(|random| random.once_in(once_in)) {
            self.suspend(State::Ready(Wake::Woken));
        }
    }

    fn dawdle(&self) {
        match self.random(|random| random.below(8)) {
            0 => self.sleep(Duration::from_micros(self.random(|random| random.below(1000)))),
            1 | 2 => drop(self.suspend(State::Ready(Wake::Woken))),
            _ => {}
        }
    }

    #[track_caller]
    fn suspend(&self, state: State) -> Wake {
        let yielder = {
            let mut tasks = self.tasks.borrow_mut();
            let task = tasks.get_mut(&self.running.get()).expect("only a task waits");
            task.state = state;
            task.place = Location::caller();
            task.yielder
        };
        // SAFETY: the yielder lives on the stack of the running task until that ends, and this is the running task.
        unsafe { (*yielder).suspend(()) }
    }

    pub(super) fn wake_all(&self, key: Key) {
        for task in self.tasks.borrow_mut().values_mut() {
            if matches!(task.state, State::Parked { key: parked, .. } if parked == key) {
                task.state = State::Ready(Wake::Woken);
            }
        }
    }

    /// One of those that wait for the key: any.
    pub(super) fn wake_one(&self, key: Key) {
        let mut tasks = self.tasks.borrow_mut();
        let parked = |task: &Task| matches!(task.state, State::Parked { key: parked, .. } if parked == key);
        let count = tasks.values().filter(|task| parked(task)).count();
        if count > 0 {
            let nth = self.random(|random| random.below(count as u64)) as usize;
            let chosen = tasks.values_mut().filter(|task| parked(task)).nth(nth).expect("counted");
            chosen.state = State::Ready(Wake::Woken);
        }
    }

    fn run(&self) {
        let mut ready = Vec::new();
        while !self.tasks.borrow().is_empty() {
            self.pass_time(&mut ready);
            let id = ready[self.random(|random| random.below(ready.len() as u64)) as usize];
            self.steps.set(self.steps.get() + 1);
            assert!(self.steps.get() < STEPS_MAX, "it does not end: {}", self.who_waits());
            self.note(id ^ self.now_us.get() << 20);
            self.step(id);
        }
    }

    /// Until a task is ready, and now and then a little longer. Fills in which are ready.
    fn pass_time(&self, ready: &mut Vec<TaskId>) {
        loop {
            self.now_us.set(self.now_us.get() + self.random(|random| random.below(4)));
            let (now, mut next) = (self.now_us.get(), None::<u64>);
            ready.clear();
            for (id, task) in self.tasks.borrow_mut().iter_mut() {
                match task.state {
                    State::Parked { until_us: Some(until), .. } if until <= now => {
                        task.state = State::Ready(Wake::TimedOut);
                        ready.push(*id);
                    }
                    State::Parked { until_us: Some(until), .. } => {
                        next = Some(next.map_or(until, |next| next.min(until)));
                    }
                    State::Parked { .. } => {}
                    State::Ready(_) => ready.push(*id),
                }
            }
            match next {
                // A task that is ready may be slow.
                Some(next) if !ready.is_empty() => {
                    if next < now + LATE_US && self.random(|random| random.once_in(32)) {
                        self.now_us.set(next);
                        continue;
                    }
                    return;
                }
                Some(next) => self.now_us.set(next),
                None if !ready.is_empty() => return,
                None => panic!("no task can go on: {}", self.who_waits()),
            }
            assert!(self.now_us.get() < LIMIT.as_micros() as u64, "it does not end: {}", self.who_waits());
        }
    }

    fn who_waits(&self) -> String {
        let tasks = self.tasks.borrow();
        let waits = tasks.iter().map(|(id, task)| format!("\n{} ({id}) at {}", task.name, task.place));
        waits.collect()
    }

    fn step(&self, id: TaskId) {
        let (mut coroutine, wake, mut here) = {
            let mut tasks = self.tasks.borrow_mut();
            let task = tasks.get_mut(&id).expect("it was ready");
            let State::Ready(wake) = task.state else { unreachable!("it was ready") };
            (task.coroutine.take().expect("it does not run"), wake, std::mem::take(&mut task.here))
        };
        self.running.set(id);
        sync::swap_here(&mut here);
        let result = coroutine.resume(wake);
        sync::swap_here(&mut here);
        match result {
            CoroutineResult::Yield(()) => {
                let mut tasks = self.tasks.borrow_mut();
                let task = tasks.get_mut(&id).expect("it has not ended");
                (task.coroutine, task.here) = (Some(coroutine), here);
            }
            CoroutineResult::Return(()) => {
                STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
                self.tasks.borrow_mut().remove(&id);
                self.wake_all(Scheduler::end_of(id));
            }
        }
    }
}
