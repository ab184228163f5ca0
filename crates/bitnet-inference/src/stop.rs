//! Stop strings in a stream of text.

/// Looks for stop strings in text that comes in pieces, and holds back what could still become one.
#[derive(Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    found: Option<String>,
    held: String,
}

impl StopStrings {
    /// Empty strings stop nothing.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), ..Self::default() }
    }

    /// Takes the next piece; returns text that is certain not to be part of a stop string, and whether one is complete.
    /// The one that is complete first counts, the longer of two that end together; what follows it is dropped.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held += text;
        let found = self.stops.iter().filter_map(|stop| {
            let at = self.held.find(stop.as_str())?;
            Some((at + stop.len(), at, stop))
        });
        if let Some((_, at, stop)) = found.min() {
            self.found = Some(stop.clone());
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The stop string that is complete.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that `stop` begins with.
pub(crate) fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).rev();
    ends.filter(|len| *len > 0).find(|len| text.ends_with(&stop[..*len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn half_a_stop_string_is_held_and_given_when_it_does_not_come() {
        let mut stop = StopStrings::new(vec!["END".into(), String::new()]);
        assert_eq!(stop.push("a E"), ("a ".into(), false));
        assert_eq!(stop.push("N"), (String::new(), false));
        assert_eq!(stop.push("x EN"), ("ENx ".into(), false));
        assert_eq!(stop.push("D of it"), (String::new(), true));
        let mut stop = StopStrings::new(vec!["é!".into()]);
        assert_eq!(stop.push("café"), ("caf".into(), false));
        assert_eq!(stop.finish(), "é");
    }

    proptest! {
        /// However the text is cut, the answer is the one of a reader that takes it letter by letter.
        #[test]
        fn cuts_do_not_matter(text in "[abé]{0,30}", stops in proptest::collection::vec("[abé]{1,4}", 0..4), cuts in proptest::collection::vec(0usize..6, 0..40)) {
            let chars: Vec<char> = text.chars().collect();
            let mut want = text.clone();
            'all: for end in 0..=chars.len() {
                let read: String = chars[..end].iter().collect();
                if let Some(stop) = stops.iter().filter(|s| read.ends_with(s.as_str())).max_by_key(|s| s.len()) {
                    want = read[..read.len() - stop.len()].to_owned();
                    break 'all;
                }
            }
            let (mut got, mut at) = (String::new(), 0usize);
            let mut stream = StopStrings::new(stops);
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let end = chars.len().min(at.saturating_add(cut));
                let (part, stopped) = stream.push(&chars[at..end].iter().collect::<String>());
                got += &part;
                at = end;
                if stopped {
                    break;
                }
                if at == chars.len() {
                    got += &stream.finish();
                    break;
                }
            }
            prop_assert_eq!(got, want);
        }
    }
}
