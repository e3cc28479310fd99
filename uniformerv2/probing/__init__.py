"""An attentive probe: how far the tokens of a frozen backbone go on data of one's own."""
