//! What an error says together with what is behind it: of a transport's error the text alone is "transport error".

use std::error::Error;

/// `error` and its sources, outermost first, with a colon between two.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| (*error).source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn each_layer_of_an_error_is_told_in_its_order() {
        let error =
            Layer("publishing", Some(Box::new(Layer("transport error", Some(Box::new(Layer("refused", None)))))));
        assert_eq!(causes(&error), "publishing: transport error: refused");
        assert_eq!(causes(&Layer("alone", None)), "alone");
    }
}
