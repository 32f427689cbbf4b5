//! What is remembered of requests in flight, under the token that they carry meanwhile.

/// A list whose places are used again. The number of a place is a token.
#[derive(Debug)]
pub(super) struct Slots<T> {
    list: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    /// Keeps `value`, and says under which token.
    #[inline]
    pub(super) fn put(&mut self, value: T) -> u64 {
        let at = self.free.pop().unwrap_or(self.list.len());
        match self.list.get_mut(at) {
            Some(place) => *place = Some(value),
            None => self.list.push(Some(value)),
        }
        at as u64
    }

    /// Takes what is kept under `token`.
    #[inline]
    pub(super) fn take(&mut self, token: u64) -> Option<T> {
        let at = usize::try_from(token).ok()?;
        let value = self.list.get_mut(at)?.take()?;
        self.free.push(at);
        Some(value)
    }

    /// What is kept under `token`.
    #[inline]
    pub(super) fn get_mut(&mut self, token: u64) -> Option<&mut T> {
        self.list.get_mut(usize::try_from(token).ok()?)?.as_mut()
    }

    /// All that are kept, with their tokens.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let all = self.list.iter_mut().enumerate();
        all.filter_map(|(at, value)| Some((at as u64, value.as_mut()?)))
    }

    /// How many are kept.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.list.len() - self.free.len()
    }
}
