//! Keys and values of the sequences, in pages.
//!
//! A layer with a sliding window keeps only the pages that its window still touches. Sequences that
//! were forked share pages until one of them writes into a shared one.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;

use ondine_kernels::{KvPage, KvShape, PAGE_TOKENS, ThreadPool};

/// What one layer keeps for one sequence.
#[derive(Clone)]
pub(crate) enum LayerState {
    /// Keys and values.
    Pages(PageList),
    /// The last inputs of a short convolution.
    History(History),
}

/// The pages of one layer, those before the window left out.
#[derive(Clone)]
pub(crate) struct PageList {
    shape: KvShape,
    window: Option<usize>,
    /// Pages `first..first + pages.len()`, page p holding positions p × PAGE_TOKENS and on.
    pages: VecDeque<Arc<KvPage>>,
    first: usize,
}

impl PageList {
    pub(crate) fn new(shape: KvShape, window: Option<usize>) -> Self {
        PageList {
            shape,
            window,
            pages: VecDeque::new(),
            first: 0,
        }
    }

    /// Writes keys `[kv_heads × key_dim]` and values `[kv_heads × value_dim]` of `position`, which
    /// must follow the last one written.
    pub(crate) fn write(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let page = position / PAGE_TOKENS;
        while page >= self.first + self.pages.len() {
            self.pages.push_back(Arc::new(KvPage::new(self.shape)));
        }
        let slot = Arc::make_mut(&mut self.pages[page - self.first]);
        slot.write(position % PAGE_TOKENS, keys, values);
    }

    /// [`write`](Self::write) of consecutive positions from `first` on, `[positions, kv_heads × dim]`, page by page on all
    /// threads.
    pub(crate) fn write_all(
        &mut self,
        pool: &ThreadPool,
        first: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let (key_width, value_width) = (
            self.shape.kv_heads * self.shape.head_dim_k,
            self.shape.kv_heads * self.shape.head_dim_v,
        );
        let end = first + keys.len() / key_width.max(1);
        let first_page = first / PAGE_TOKENS;
        while end.div_ceil(PAGE_TOKENS) > self.first + self.pages.len() {
            self.pages.push_back(Arc::new(KvPage::new(self.shape)));
        }
        let written = self
            .pages
            .range_mut(first_page - self.first..end.div_ceil(PAGE_TOKENS) - self.first);
        let mut pages: Vec<&mut KvPage> = written.map(Arc::make_mut).collect();
        pool.for_each_chunk_mut(&mut pages, 1, |index, page| {
            let start = (first_page + index) * PAGE_TOKENS;
            for position in start.max(first)..end.min(start + PAGE_TOKENS) {
                let row = position - first;
                page[0].write(
                    position % PAGE_TOKENS,
                    &keys[row * key_width..][..key_width],
                    &values[row * value_width..][..value_width],
                );
            }
        });
    }

    /// Says that `position` will be written soon.
    pub(crate) fn prepare(&self, position: usize) {
        let page = (position / PAGE_TOKENS).checked_sub(self.first);
        if let Some(page) = page.and_then(|page| self.pages.get(page)) {
            page.prepare(position % PAGE_TOKENS);
        }
    }

    /// The pages, and the position of the first one's first slot.
    pub(crate) fn view(&self) -> (Vec<&KvPage>, usize) {
        let pages = self.pages.iter().map(Arc::as_ref).collect();
        (pages, self.first * PAGE_TOKENS)
    }

    /// Drops the pages that no query from position `length` on can see, even if some tokens are taken back.
    pub(crate) fn drop_unseen(&mut self, length: usize) {
        /// Tokens that can be taken back for sure: more than are guessed ahead at once.
        const TAKEN_BACK: usize = 16;
        let Some(window) = self.window else { return };
        let needed = (length + 1).saturating_sub(window + TAKEN_BACK) / PAGE_TOKENS;
        while self.first < needed && !self.pages.is_empty() {
            self.pages.pop_front();
            self.first += 1;
        }
    }

    /// Whether a sequence of `length` tokens can go on with the pages that are here.
    fn can_continue_from(&self, length: usize) -> bool {
        let needed = match self.window {
            Some(window) => (length + 1).saturating_sub(window) / PAGE_TOKENS,
            None => 0,
        };
        self.first <= needed || length == 0
    }

    fn truncate(&mut self, length: usize) {
        let keep = length.div_ceil(PAGE_TOKENS).saturating_sub(self.first);
        self.pages.truncate(keep);
        if length == 0 {
            self.pages.clear();
            self.first = 0;
        }
    }

    fn bytes(&self) -> u64 {
        self.pages.iter().map(|page| page.bytes() as u64).sum()
    }
}

/// The last inputs of a short convolution, [positions, channels], newest last. More than the taps
/// need are kept, so that a few tokens can be taken back.
#[derive(Clone)]
pub(crate) struct History {
    channels: usize,
    taps: usize,
    rows: VecDeque<Arc<[f32]>>,
}

/// Tokens that can be taken back from a convolution's history.
const HISTORY_SLACK: usize = 64;

impl History {
    pub(crate) fn new(channels: usize, taps: usize) -> Self {
        History {
            channels,
            taps,
            rows: VecDeque::new(),
        }
    }

    /// The inputs before the next position, [taps - 1, channels], zeros where there are none.
    pub(crate) fn state(&self) -> Vec<f32> {
        let needed = self.taps - 1;
        let mut state = vec![0.0; needed * self.channels];
        let here = self.rows.len().min(needed);
        let rows = self.rows.iter().skip(self.rows.len() - here);
        for (slot, row) in rows.enumerate() {
            let start = (needed - here + slot) * self.channels;
            state[start..start + self.channels].copy_from_slice(row);
        }
        state
    }

    /// Appends inputs, [positions, channels].
    pub(crate) fn push(&mut self, inputs: &[f32]) {
        let keep = self.taps - 1 + HISTORY_SLACK;
        let rows = inputs.chunks_exact(self.channels);
        let skip = rows.len().saturating_sub(keep);
        for row in rows.skip(skip) {
            self.rows.push_back(row.into());
        }
        while self.rows.len() > keep {
            self.rows.pop_front();
        }
    }

    fn can_drop(&self, tokens: usize, length: usize) -> bool {
        length == 0
            || self
                .rows
                .len()
                .checked_sub(tokens)
                .is_some_and(|left| left >= length.min(self.taps - 1))
    }

    fn drop_last(&mut self, tokens: usize, length: usize) {
        if length == 0 {
            self.rows.clear();
        } else {
            self.rows.truncate(self.rows.len().saturating_sub(tokens));
        }
    }
}

/// Everything that is kept for one sequence.
#[derive(Clone)]
pub(crate) struct SequenceState {
    pub(crate) length: usize,
    pub(crate) layers: Vec<LayerState>,
}

impl SequenceState {
    /// Shortens to `length`, or to nothing where that cannot be continued from.
    pub(crate) fn truncate(&mut self, length: usize) -> usize {
        if length >= self.length {
            return self.length;
        }
        let dropped = self.length - length;
        let possible = self.layers.iter().all(|layer| match layer {
            LayerState::Pages(pages) => pages.can_continue_from(length),
            LayerState::History(history) => history.can_drop(dropped, length),
        });
        let length = if possible { length } else { 0 };
        let dropped = self.length - length;
        for layer in &mut self.layers {
            match layer {
                LayerState::Pages(pages) => pages.truncate(length),
                LayerState::History(history) => history.drop_last(dropped, length),
            }
        }
        self.length = length;
        length
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.layers
            .iter()
            .map(|layer| match layer {
                LayerState::Pages(pages) => pages.bytes(),
                LayerState::History(history) => {
                    (history.rows.len() * history.channels * size_of::<f32>()) as u64
                }
            })
            .sum()
    }

    pub(crate) fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        for layer in &self.layers {
            match layer {
                LayerState::Pages(pages) => {
                    write_count(out, pages.first)?;
                    write_count(out, pages.pages.len())?;
                    for page in &pages.pages {
                        out.write_all(page.as_bytes())?;
                    }
                }
                LayerState::History(history) => {
                    write_count(out, history.rows.len())?;
                    for row in &history.rows {
                        for value in row.iter() {
                            out.write_all(&value.to_le_bytes())?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills empty layers from what [`SequenceState::save`] wrote for `length` tokens. The counts
    /// must be the ones that such a sequence has, so that nothing is reserved on the file's word.
    pub(crate) fn load(&mut self, length: usize, input: &mut dyn Read) -> io::Result<()> {
        for layer in &mut self.layers {
            match layer {
                LayerState::Pages(pages) => {
                    let first = read_count(input)?;
                    let count = read_count(input)?;
                    let last = length.div_ceil(PAGE_TOKENS);
                    if first.checked_add(count) != Some(last) {
                        return Err(damaged());
                    }
                    pages.first = first;
                    if !pages.can_continue_from(length) {
                        return Err(damaged());
                    }
                    for _ in 0..count {
                        let mut page = KvPage::new(pages.shape);
                        let mut bytes = vec![0; page.as_bytes().len()];
                        input.read_exact(&mut bytes)?;
                        page.copy_from_bytes(&bytes);
                        pages.pages.push_back(Arc::new(page));
                    }
                }
                LayerState::History(history) => {
                    let count = read_count(input)?;
                    if count > length
                        || count > history.taps - 1 + HISTORY_SLACK
                        || count < length.min(history.taps - 1)
                    {
                        return Err(damaged());
                    }
                    for _ in 0..count {
                        let mut bytes = vec![0; history.channels * size_of::<f32>()];
                        input.read_exact(&mut bytes)?;
                        let row = bytes
                            .chunks_exact(4)
                            .map(|raw| f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]));
                        history.rows.push_back(row.collect());
                    }
                }
            }
        }
        self.length = length;
        Ok(())
    }
}

fn write_count(out: &mut dyn Write, count: usize) -> io::Result<()> {
    out.write_all(&(count as u64).to_le_bytes())
}

fn read_count(input: &mut dyn Read) -> io::Result<usize> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| damaged())
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "is damaged")
}
