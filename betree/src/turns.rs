//! Turns: writers that all write as fast as they can have the commit lock for a while each, instead of for one commit each.
//!
//! A commit of a small record takes a third of a microsecond. Two threads that hand the lock to each other for each of them spend as much again on
//! waiting, waking, and fetching the memtable's nodes and the log's window from the other core's caches. While one of them stands aside for
//! [`TURN`], the other has all of that to itself, and nobody is woken. The price is that one commit in some thousands waits that long.
//!
//! - Turns begin only where commits collide again and again, and are compared: with the rate at which commits went through without them, measured just
//!   before. Where they are slower (threads that do something else between commits lose by standing aside) they end, for longer each time.
//! - A turn is long, since each change of turns costs a switch of threads, but who waits does so for a short time: the more there are, the shorter the
//!   turns.
//! - Who has had its turn hands over to who waits longest, and stands aside at its next commit. The other goes on at the same core (`Stay`), with the
//!   memtable's nodes in its caches, and background work keeps the other core. Two that wait at different cores would keep to them turn after turn, so
//!   whoever hands over waits where the other wakes.
//! - Whoever commits little is not held up: a thread stands aside only after [`LIGHT`] commits in somebody else's turn, unless it has just had its own.
//! - A turn that is not made use of ends at the next look of who waits, and one that is not handed over, too.
//!
//! What excludes writers from each other is the lock. A turn only says who should ask for it, so nothing depends on it but time, and every wait has a
//! limit: no wake-up can be lost for longer than that. Owned by the database; the lock of the queue is innermost, and never held while the commit lock is
//! waited for.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use betree_storage::primitives::atomic::{AtomicU64, Ordering::Relaxed};
use betree_storage::primitives::{Mutex, MutexGuard};
use betree_storage::processor::{self, Stay};

/// How long a turn lasts while one thread waits for its own; shorter if several do.
const TURN: Duration = Duration::from_millis(4);
/// The shortest turns, and the least time in which collisions are counted before there are turns.
const SHORTEST: Duration = Duration::from_millis(1);
/// The first who waits looks so many times in a turn whether it is made use of. A turn that lasts longer than it should by the time between is taken.
const LOOKS: u32 = 2;
/// Messages since the last look that are use enough.
const USE: u64 = 16;
/// Commits that a thread may do in each turn of another.
const LIGHT: u32 = 8;
/// A thread whose commits collided so often, within [`SHORTEST`] to [`LONGEST`], begins a turn.
const COLLISIONS: u32 = 32;
const LONGEST: Duration = Duration::from_millis(2);
/// So many turns are compared at a time with how it went without them. The best of them must have had this share of the rate: both vary with what
/// background work does at the moment, and where turns do harm, they do more.
const COMPARED: u32 = 4;
const SLOWER: f64 = 0.75;
/// After so many turns it is measured anew how it goes without them.
const MOST_TURNS: u32 = 256;
/// How long there are no turns where they were slower, at first; twice as long each time that they are again.
const REFRAIN: Duration = Duration::from_millis(100);
const LONGEST_REFRAIN: Duration = Duration::from_secs(10);
/// Every so many commits who has the turn looks whether it is over, and anybody waits for the next. If nobody does for [`ALONE`], there are no turns
/// any more.
const BETWEEN_LOOKS: u32 = 256;
const ALONE: Duration = Duration::from_millis(32);

/// Up to so many wait at the processor of who has the turn.
const FEW: usize = 4;

/// How long a turn lasts while so many threads wait.
fn length(waiting: usize) -> Duration {
    (TURN / u32::try_from(waiting.max(1)).unwrap_or(u32::MAX)).max(SHORTEST)
}

/// What a thread knows of itself. It may write to several databases; numbers of turns are never used twice in a process.
#[derive(Debug)]
struct Mine {
    /// The last turn that was its own.
    own: Cell<u64>,
    /// The last turn that it met.
    met: Cell<u64>,
    /// Its commits since then.
    commits: Cell<u32>,
    /// How often it collided with others since a moment at which it did.
    collisions: Cell<u32>,
    since: Cell<Option<Mark>>,
}

impl Mine {
    const fn new() -> Mine {
        Mine {
            own: Cell::new(0),
            met: Cell::new(0),
            commits: Cell::new(0),
            collisions: Cell::new(0),
            since: Cell::new(None),
        }
    }

    /// A turn of this thread begins.
    fn begin(&self, turn: u64) {
        self.own.set(turn);
        self.met.set(turn);
        self.commits.set(0);
    }

    /// Another commit, and how many that makes.
    #[inline]
    fn count(&self) -> u32 {
        self.commits.set(self.commits.get() + 1);
        self.commits.get()
    }
}

thread_local! {
    static MINE: Mine = const { Mine::new() };
}

/// A number that was not given before.
fn fresh() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// A moment, and how many messages there were.
#[derive(Debug, Clone, Copy)]
struct Mark {
    time: Instant,
    messages: u64,
}

impl Mark {
    fn new(messages: &AtomicU64) -> Mark {
        Mark { time: Instant::now(), messages: messages.load(Relaxed) }
    }

    /// Messages per second since then.
    fn rate(self, now: Mark) -> f64 {
        let seconds = now.time.saturating_duration_since(self.time).as_secs_f64();
        now.messages.saturating_sub(self.messages) as f64 / seconds.max(1e-9)
    }
}

/// A thread that waits for a turn.
#[derive(Debug)]
struct Waiter {
    thread: Thread,
    /// Where it wakes, if that is known.
    processor: Option<usize>,
    /// The turn that it was given, if it was. Changes with the queue locked.
    given: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Who waits for a turn, in order.
    waiting: VecDeque<Arc<Waiter>>,
    /// Where the thread runs that has the turn: when it last looked, or where it wakes to have it.
    processor: Option<usize>,
    /// Where the turn began.
    began: Option<Mark>,
    /// Messages per second without turns, and the most in one of the turns that are compared next.
    without: f64,
    best: f64,
    turns: u32,
    refrain: Duration,
    not_before: Option<Instant>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Number of the turn; 0: there are none.
    turn: AtomicU64,
    queue: Mutex<Queue>,
}

impl Turns {
    /// The lock, when it is this thread's turn. `messages` counts what is committed.
    #[inline]
    pub(crate) fn lock<'a, T>(&self, lock: &'a Mutex<T>, messages: &AtomicU64) -> MutexGuard<'a, T> {
        // Where there is no time there are no turns.
        if cfg!(feature = "shuttle") {
            return lock.lock();
        }
        let turn = self.turn.load(Relaxed);
        if turn == 0
            && let Some(guard) = lock.try_lock()
        {
            return guard;
        }
        MINE.with(|mine| {
            if turn == 0 {
                self.collide(mine, messages);
            } else {
                self.heed(turn, mine, messages);
            }
        });
        lock.lock()
    }

    /// Somebody else had the lock, and there are no turns.
    #[cold]
    fn collide(&self, mine: &Mine, messages: &AtomicU64) {
        let now = Mark::new(messages);
        let since = mine.since.get().filter(|since| now.time.duration_since(since.time) < LONGEST);
        let Some(since) = since else {
            mine.since.set(Some(now));
            mine.collisions.set(1);
            return;
        };
        mine.collisions.set(mine.collisions.get() + 1);
        if mine.collisions.get() < COLLISIONS || now.time.duration_since(since.time) < SHORTEST {
            return;
        }
        mine.since.set(None);
        let Some(mut queue) = self.queue.try_lock() else { return };
        if self.turn.load(Relaxed) == 0 && queue.not_before.is_none_or(|moment| now.time >= moment) {
            (queue.without, queue.best, queue.turns) = (since.rate(now), 0.0, 0);
            queue.processor = processor::current();
            mine.begin(self.next(&mut queue, now));
        }
    }

    /// There are turns.
    #[inline]
    fn heed(&self, turn: u64, mine: &Mine, messages: &AtomicU64) {
        if mine.met.get() == turn && mine.own.get() == turn {
            if mine.count().is_multiple_of(BETWEEN_LOOKS) {
                self.look_around(mine, messages);
            }
        } else {
            self.heed_another(turn, mine, messages);
        }
    }

    /// The turn is somebody else's, as far as this thread has seen.
    #[cold]
    fn heed_another(&self, turn: u64, mine: &Mine, messages: &AtomicU64) {
        if mine.met.get() != turn {
            let had_its_own = mine.met.get() == mine.own.get() && mine.commits.get() > LIGHT;
            mine.commits.set(if had_its_own { LIGHT } else { 0 });
            mine.met.set(turn);
        }
        if mine.count() > LIGHT && mine.own.get() != turn {
            self.stand_aside(self.queue.lock(), None, mine, messages);
        }
    }

    /// Hands over to who waits longest and stands aside if the turn is over; ends the turns if nobody waits.
    #[cold]
    fn look_around(&self, mine: &Mine, messages: &AtomicU64) {
        let Some(mut queue) = self.queue.try_lock() else { return };
        queue.processor = processor::current();
        let now = Mark::new(messages);
        let lasted = queue.began.map_or(Duration::MAX, |began| now.time.duration_since(began.time));
        if queue.waiting.is_empty() {
            if lasted > ALONE {
                self.end(&mut queue);
            }
            return;
        }
        if lasted < length(queue.waiting.len()) {
            return;
        }
        self.compare(&mut queue, now);
        if self.turn.load(Relaxed) == 0 {
            return;
        }
        let Some(next) = queue.waiting.pop_front() else { return };
        let turn = self.next(&mut queue, now);
        next.given.store(turn, Relaxed);
        // This thread waits where the other one goes on, so that they do not keep to a processor each.
        queue.processor = next.processor.or(queue.processor);
        self.stand_aside(queue, Some(next), mine, messages);
    }

    /// Waits for a turn, or until there are none. Wakes `next` just before.
    #[cold]
    fn stand_aside<'a>(
        &'a self,
        mut queue: MutexGuard<'a, Queue>,
        mut next: Option<Arc<Waiter>>,
        mine: &Mine,
        messages: &AtomicU64,
    ) {
        let few = queue.waiting.len() < FEW;
        let stay = queue.processor.filter(|_| few).and_then(|at| Some((at, Stay::on(at)?)));
        let me = Arc::new(Waiter {
            thread: thread::current(),
            processor: stay.as_ref().map(|(at, _)| *at),
            given: AtomicU64::new(0),
        });
        queue.waiting.push_back(Arc::clone(&me));
        while self.turn.load(Relaxed) != 0 {
            let given = me.given.load(Relaxed);
            if given != 0 {
                mine.begin(given);
                break;
            }
            let before = Mark::new(messages);
            let turn = self.turn.load(Relaxed);
            let first = queue.waiting.front().is_some_and(|first| Arc::ptr_eq(first, &me));
            let length = length(queue.waiting.len());
            let look = length / LOOKS;
            if first && queue.began.is_none_or(|began| began.time.elapsed() >= length + look) {
                self.compare(&mut queue, before);
                if self.turn.load(Relaxed) != 0 {
                    queue.processor = processor::current();
                    mine.begin(self.next(&mut queue, before));
                }
                break;
            }
            drop(queue);
            if let Some(next) = next.take() {
                next.thread.unpark();
            }
            thread::park_timeout(if first { look } else { TURN });
            queue = self.queue.lock();
            let now = Mark::new(messages);
            let looked = first && now.time.duration_since(before.time) >= look;
            let unused =
                self.turn.load(Relaxed) == turn && now.messages.saturating_sub(before.messages) < USE;
            if looked && unused {
                queue.processor = processor::current();
                mine.begin(self.next(&mut queue, now));
                break;
            }
        }
        queue.waiting.retain(|waiting| !Arc::ptr_eq(waiting, &me));
    }

    /// The number of the turn that begins now.
    fn next(&self, queue: &mut Queue, now: Mark) -> u64 {
        let turn = fresh();
        queue.began = Some(now);
        self.turn.store(turn, Relaxed);
        turn
    }

    /// Ends the turns if they are not faster, or it is time to see whether they still are.
    fn compare(&self, queue: &mut Queue, now: Mark) {
        queue.best = queue.best.max(queue.began.map_or(0.0, |began| began.rate(now)));
        queue.turns += 1;
        if !queue.turns.is_multiple_of(COMPARED) {
            return;
        }
        let slower = queue.best < SLOWER * queue.without;
        queue.best = 0.0;
        if slower {
            queue.refrain = (2 * queue.refrain).clamp(REFRAIN, LONGEST_REFRAIN);
            queue.not_before = Some(now.time + queue.refrain);
        } else {
            queue.refrain = Duration::ZERO;
        }
        if slower || queue.turns >= MOST_TURNS {
            self.end(queue);
        }
    }

    fn end(&self, queue: &mut Queue) {
        self.turn.store(0, Relaxed);
        queue.began = None;
        queue.waiting.iter().for_each(|waiting| waiting.thread.unpark());
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    /// Commits `times`, as a writer does.
    fn commit(turns: &Turns, lock: &Mutex<u64>, messages: &AtomicU64, times: u64) {
        for _ in 0..times {
            let mut guard = turns.lock(lock, messages);
            *guard += 1;
            messages.store(*guard, Relaxed);
        }
    }

    fn running(turns: &Turns) -> bool {
        turns.turn.load(Relaxed) != 0
    }

    /// A turn of a thread that is gone.
    fn deserted(turns: &Turns, ago: Duration) {
        turns.turn.store(fresh(), Relaxed);
        let time = Instant::now().checked_sub(ago).unwrap();
        turns.queue.lock().began = Some(Mark { time, messages: 0 });
    }

    #[test]
    fn every_commit_of_writers_that_collide_all_the_time_is_done_and_the_turns_end() {
        let (turns, lock, messages) = (Turns::default(), Mutex::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| commit(&turns, &lock, &messages, 200_000));
            }
        });
        assert_eq!(*lock.lock(), 800_000);
        assert!(turns.queue.lock().waiting.is_empty());
        // One that goes on alone waits for nobody, and for nothing.
        let mut commits = 0;
        while running(&turns) {
            commit(&turns, &lock, &messages, 1);
            commits += 1;
            assert!(commits < 100_000_000, "turns of one thread do not end");
        }
    }

    #[test]
    fn a_turn_that_nobody_makes_use_of_holds_nobody_up() {
        let (turns, lock, messages) = (Turns::default(), Mutex::new(0), AtomicU64::new(0));
        for ago in [Duration::ZERO, 2 * TURN] {
            deserted(&turns, ago);
            commit(&turns, &lock, &messages, 3 * u64::from(LIGHT));
        }
        assert_eq!(*lock.lock(), 6 * u64::from(LIGHT));
        assert!(turns.queue.lock().waiting.is_empty());
    }

    #[test]
    fn whoever_commits_little_does_not_stand_aside() {
        let (turns, lock, messages) = (Turns::default(), Mutex::new(0), AtomicU64::new(0));
        deserted(&turns, Duration::ZERO);
        let turn = turns.turn.load(Relaxed);
        commit(&turns, &lock, &messages, u64::from(LIGHT));
        assert_eq!(turns.turn.load(Relaxed), turn);
    }

    #[test]
    fn whoever_had_a_turn_stands_aside_at_the_first_commit_in_the_next() {
        let (turns, lock, messages) = (Turns::default(), Mutex::new(0), AtomicU64::new(0));
        let own = fresh();
        MINE.with(|mine| {
            mine.begin(own);
            mine.commits.set(LIGHT + 1);
        });
        deserted(&turns, 2 * TURN);
        commit(&turns, &lock, &messages, 1);
        let last = MINE.with(|mine| mine.own.get());
        assert!(last > own && turns.turn.load(Relaxed) == last, "it has the turn");
    }

    #[test]
    fn a_turn_that_is_over_is_given_to_who_waits_and_whoever_had_it_stands_aside() {
        let (turns, lock, messages) = (Turns::default(), Mutex::new(0), AtomicU64::new(0));
        let own = fresh();
        MINE.with(|mine| {
            mine.begin(own);
            mine.commits.set(BETWEEN_LOOKS - 1);
        });
        deserted(&turns, TURN);
        turns.turn.store(own, Relaxed);
        // It never makes use of what it gets, so that this thread has the next turn.
        let here = processor::current();
        let elsewhere = (0..64).find(|&at| Some(at) != here && Stay::on(at).is_some());
        // Finding out moved this thread there.
        drop(here.and_then(Stay::on));
        let waiter =
            Arc::new(Waiter { thread: thread::current(), processor: elsewhere, given: AtomicU64::new(0) });
        turns.queue.lock().waiting.push_back(Arc::clone(&waiter));
        commit(&turns, &lock, &messages, 1);
        let given = waiter.given.load(Relaxed);
        let last = MINE.with(|mine| mine.own.get());
        assert!(own < given && given < last, "{own}, {given}, {last}");
        let queue = turns.queue.lock();
        assert!(queue.waiting.is_empty() && *lock.lock() == 1);
        assert!(elsewhere.is_none() || queue.processor == elsewhere, "it waited where the other was");
    }

    #[test]
    fn the_more_wait_the_shorter_is_a_turn() {
        assert_eq!([0, 1, 2, 4, 16, usize::MAX].map(length), [4, 4, 2, 1, 1, 1].map(Duration::from_millis));
    }

    /// Turns of `per_turn` messages where there were `without` in the same time before, until they end: how many there were.
    fn compared(turns: &Turns, queue: &mut Queue, without: u64, per_turn: u64) -> u32 {
        let began = Instant::now();
        let after = |n: u32| Mark { time: began + n * TURN, messages: u64::from(n) * per_turn };
        (queue.without, queue.best, queue.turns) = (without as f64 / TURN.as_secs_f64(), 0.0, 0);
        queue.began = Some(after(0));
        turns.turn.store(fresh(), Relaxed);
        let mut n = 0;
        while running(turns) {
            n += 1;
            turns.compare(queue, after(n));
            queue.began = Some(after(n));
        }
        n
    }

    #[test]
    fn turns_that_are_slower_end_for_longer_each_time_and_others_after_a_while_to_be_measured_again() {
        let turns = Turns::default();
        let mut queue = turns.queue.lock();
        for refrain in [REFRAIN, 2 * REFRAIN, 4 * REFRAIN] {
            assert_eq!(compared(&turns, &mut queue, 1000, 500), COMPARED);
            assert_eq!(queue.refrain, refrain);
            assert!(queue.not_before.is_some_and(|moment| moment > Instant::now()));
        }
        assert_eq!(compared(&turns, &mut queue, 1000, 1500), MOST_TURNS);
        assert_eq!(queue.refrain, Duration::ZERO);
        assert_eq!(compared(&turns, &mut queue, 1000, 500), COMPARED);
        assert_eq!(queue.refrain, REFRAIN);
    }
}
