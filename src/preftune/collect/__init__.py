"""Where rows come from: small functions Context -> Rows. They call policies and judges and touch no response tensor."""
