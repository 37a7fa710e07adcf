return refuse() or {'OK'}
