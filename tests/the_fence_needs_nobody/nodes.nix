{ cluster }: cluster { hosts.alpha = { }; }
