mod X;
