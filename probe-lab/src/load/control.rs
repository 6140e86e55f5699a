//! One word for all threads of a load: go on, hold, end.
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Shared by the threads and whoever started them.
#[derive(Debug)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    word: Word,
    /// Threads that have not ended.
    threads: usize,
    /// Threads that hold.
    holding: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Go,
    Hold,
    End,
}

impl Control {
    pub(super) fn new(threads: usize) -> Self {
        let state = State { word: Word::Go, threads, holding: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Whether the word is to go on. A thread asks between two rounds, and only `settled` lets it be held: until then
    /// it sends nothing more and is asked again.
    pub(super) fn goes_on(&self, settled: bool) -> Turn {
        let mut state = self.lock();
        if state.word == Word::Hold && settled {
            state.holding += 1;
            self.changed.notify_all();
            while state.word == Word::Hold {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.holding -= 1;
        }
        match state.word {
            Word::Go => Turn::Send,
            Word::Hold => Turn::Settle,
            Word::End => Turn::End,
        }
    }

    /// A thread has ended.
    pub(super) fn leave(&self) {
        self.lock().threads -= 1;
        self.changed.notify_all();
    }

    /// Has every thread hold, and waits until all do.
    pub(super) fn pause(&self) {
        let mut state = self.lock();
        state.word = Word::Hold;
        while state.word == Word::Hold && state.holding < state.threads {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn resume(&self) {
        self.say(Word::Go);
    }

    pub(super) fn stop(&self) {
        self.say(Word::End);
    }

    fn say(&self, word: Word) {
        self.lock().word = word;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Another round.
    Send,
    /// Nothing new; receive what is under way, then ask again.
    Settle,
    /// No more; receive what is under way.
    End,
}
