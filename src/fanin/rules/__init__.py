"""One problem a file; `fanin.judgement.load_rules` finds them."""
